"""Samples images from a run and writes images to files, for all commands that do."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

import ddgan_jax
from ddgan_jax import sampling, train_state
from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import conditions as conditions_lib
from ddgan_jax.models import conditions, labels
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import grids, trajectories

_COLUMNS = 10  # of a grid that starts with its inputs


def generate(
    run: ddgan_jax.Run, num: int, seed: int, batch_size: int = 100, label: int | np.ndarray | None = None,
    condition: np.ndarray | None = None) -> np.ndarray:
  """Samples `num` images of a run.

  Args:
    run: a run of `ddgan_jax.load`.
    num, batch_size: number of images, and the maximum batch size.
    seed: image i is a function of (seed, i).
    label: an integer, or [k] labels, of which image i gets label i mod k; by default that of the run.
    condition: [k, h, w, c] float32; the first num / k images have the first condition, and so on. By default none.

  Returns:
    [num, H, W, C] uint8; with data.value_range, float32 in the units of the data; for points, [num, 1, 1, 2] float32.

  Raises:
    ConfigError: the run has no such label or condition, or requires one.
  """
  conditions.check_condition(condition, run.config)
  if label is not None:
    labels.check_label(label, run.config.generator)
    label = np.atleast_1d(label)
  most = sampling.max_batch_size(run.schedule.num_timesteps, run.config.image_shape, run.config.generator.nz)
  batch_size = min(batch_size, num, most)

  @compilation.jit
  def sample_batch(first, condition):
    indices = first + np.arange(batch_size)
    images = sampling.sample_each(
        seed, indices, _generator_fn(run, label, indices, condition), run.schedule, run.config.image_shape,
        run.config.generator.nz)
    return train_state.in_units_of_data(images, run.config)

  def rows(first):
    if condition is None:
      return None
    return condition[np.arange(first, first + batch_size) % num * len(condition) // num]

  return np.concatenate([np.asarray(sample_batch(first, rows(first))) for first in range(0, num, batch_size)])[:num]


def denoise(run: ddgan_jax.Run, num: int, seed: int, label: np.ndarray | None = None) -> trajectories.Steps:
  """Returns all denoising steps of the images that `generate` samples with these arguments, for a picture."""
  config, num_timesteps = run.config, run.schedule.num_timesteps
  # The steps and the predictions each take as much memory as the noise.
  batch_size = min(num, sampling.max_batch_size(3 * num_timesteps, config.image_shape, config.generator.nz))

  @compilation.jit
  def denoise_batch(first):
    indices = first + np.arange(batch_size)
    steps = sampling.trajectory_each(
        seed, indices, _generator_fn(run, label, indices), run.schedule, config.image_shape, config.generator.nz)
    return jax.tree.map(lambda images: train_state.in_units_of_data(images, config), steps)

  parts = [jax.device_get(denoise_batch(first)) for first in range(0, num, batch_size)]
  x_t, predictions = (np.concatenate(part, axis=1)[:, :num] for part in zip(*parts))
  evaluations = f'{num_timesteps:,} evaluation{"s" if num_timesteps > 1 else ""} of G'
  names = () if label is None else [f'class {label[i % len(label)]}' for i in range(num)]
  return trajectories.Steps(
      x_t, predictions, f'From noise to a sample in {evaluations}',
      has_latent=config.generator.nz > 0 and config.method != 'gaussian',
      predicts_x_t=config.generator.prediction == 'x_t', names=names)


def _generator_fn(
    run: ddgan_jax.Run, label: np.ndarray | None, indices: jax.Array, condition: jax.Array | None = None
) -> sampling.GeneratorFn:
  """The generator function of the run; with labels [k], image i gets label i mod k."""
  if label is None and condition is None:
    return run.generator_fn
  label = run.label if label is None else jnp.asarray(label)[indices % len(label)]
  return train_state.make_sampler(run.config, run.params, run.schedule.num_timesteps, label, condition)[0]


def save_steps(path: str, steps: trajectories.Steps) -> None:
  """Writes denoising steps as a strip (.png) or an animation (.gif)."""
  if path.lower().endswith('.gif'):
    trajectories.save_gif(path, trajectories.draw_frames(steps))
  else:
    grids.save_png(path, trajectories.draw_strip(steps))


def save(
    path: str, images: np.ndarray, title: str = '', label: np.ndarray | None = None,
    inputs: np.ndarray | None = None, value_range: tuple[float, ...] = ()) -> None:
  """Writes [n, H, W, C] uint8 images to a grid (.png), an array (.npz) or a folder; call `check_out` first.

  Float32 points go to a scatter plot with a title (.png) or to an array, float32 values in `value_range` to a grid of
  `grids.values_to_uint8` or to an array. With labels [k], image i has label i mod k: a grid has one column per label,
  and an .npz also has `labels` [n]. `inputs` [m, H, W, C] uint8, the images that were edited, come first in a grid, are
  `inputs` in an .npz, and input_0.png, … in a folder.
  """
  ending = os.path.splitext(path)[1].lower()
  if ending == '.png' and inputs is not None:
    both = np.concatenate([inputs, images])
    grids.save_png(path, grids.make_grid(both, columns=min(len(both), _COLUMNS)))
  elif ending == '.png':
    columns = len(label) if label is not None and 1 < len(label) <= len(images) else None
    grids.save_png(path, grids.make_picture(images, title, columns, value_range))
  elif ending == '.npz':
    known = {} if label is None else {'labels': np.resize(label, len(images))}
    known |= {} if inputs is None else {'inputs': inputs}
    np.savez_compressed(path, images=images, **known)
  else:
    for i, image in enumerate(() if inputs is None else inputs):
      grids.save_png(os.path.join(path, f'input_{i}.png'), image)
    for i, image in enumerate(images):
      grids.save_png(os.path.join(path, f'{i:06d}.png'), image)


def save_conditional(
    path: str, images: np.ndarray, condition: np.ndarray, truth: np.ndarray | None, data_config: DataConfig,
    label: np.ndarray | None = None) -> None:
  """Writes samples [k n, H, W, C], n of each condition in turn; call `check_out` first.

  A grid has one row per condition: the condition, its samples, their mean, twice their standard deviation, and the
  true image; an .npz has `images`, `conditions` (in `pair_range` if the run has one, otherwise in
  [-1, 1]) and, if known, `truths` and `labels`; a folder has the
  samples as 000000.png, …, the conditions as input_0.png, … and the true images as truth_0.png, ….

  Args:
    path: see `save`.
    images: the samples, uint8, or float32 values.
    condition: [k, h, w, c] float32 in [-1, 1].
    truth: [k, H, W, C] like the samples, or None.
    data_config: of the run.
    label: [m] labels, of which image i has label i mod m, or None.
  """
  value_range = data_config.value_range
  if path.lower().endswith('.npz'):
    in_units = sampling.to_values(condition, data_config.pair_range) if data_config.pair_range else condition
    known = {'conditions': in_units} | ({} if truth is None else {'truths': truth})
    known |= {} if label is None else {'labels': np.resize(label, len(images))}
    np.savez_compressed(path, images=images, **known)
    return
  if value_range:
    images = grids.values_to_uint8(images, value_range)
    truth = None if truth is None else grids.values_to_uint8(truth, value_range)
  if not path.lower().endswith('.png'):
    save(path, images, inputs=conditions_lib.picture(condition, data_config))
    for i, image in enumerate(() if truth is None else truth):
      grids.save_png(os.path.join(path, f'truth_{i}.png'), image)
    return
  samples = images.reshape(len(condition), -1, *images.shape[1:])
  mean, spread = (np.round(np.clip(each, 0, 255)).astype(np.uint8) for each in (samples.mean(1), 2 * samples.std(1)))
  rows, heads = conditions_lib.picture_rows(
      data_config, condition, images, mean=mean, **{'2 std': spread}, **({} if truth is None else {'truth': truth}))
  grids.save_png(path, grids.make_grid(rows, heads=heads))


def check_out(path: str, trajectory: bool = False) -> None:
  """Raises ConfigError for a path of a wrong type, a folder that is not empty, or a read-only folder."""
  ending = os.path.splitext(path)[1].lower()
  if trajectory and ending not in ('.png', '.gif'):
    raise ConfigError(f'--out is {path!r}; use a .png (a strip) or a .gif (an animation) with --trajectory')
  if not trajectory and ending not in ('', '.png', '.npz'):
    raise ConfigError(f'--out is {path!r}; use a .png (a grid), an .npz (an array), or a folder')
  if not ending and os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
    raise ConfigError(f'--out is {path!r}, which exists and is not an empty folder; use another')
  folder = path if not ending else os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--out: {folder!r} is not writable; use another folder')
