"""What a run draws, and the files that pictures go to; for all commands that make some."""

from __future__ import annotations

import os

import jax.numpy as jnp
import numpy as np

import ddgan_jax
from ddgan_jax import sampling, train_state
from ddgan_jax.config import ConfigError
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import grids

_COLUMNS = 10  # of a grid that begins with its inputs


def generate(
    run: ddgan_jax.Run, num: int, seed: int, batch_size: int = 100, label: int | np.ndarray | None = None
) -> np.ndarray:
  """Samples `num` images of a run.

  Args:
    run: as `ddgan_jax.load` returns it.
    num, batch_size: how many images, and how many of them at a time.
    seed: image i is a function of (seed, i).
    label: one integer, or [k]: image i gets label i mod k; by default all get what the run was loaded with.

  Returns:
    [num, H, W, C] uint8; of points float32 [num, 1, 1, 2].

  Raises:
    ConfigError: the run knows no such label, or needs one.
  """
  if label is not None:
    labels.check_label(label, run.config.generator)
    label = np.atleast_1d(label)
  most = sampling.max_batch_size(run.schedule.num_timesteps, run.config.image_shape, run.config.generator.nz)
  batch_size = min(batch_size, num, most)

  @compilation.jit
  def sample_batch(first):
    indices, generator_fn = first + np.arange(batch_size), run.generator_fn
    if label is not None:
      generator_fn, _ = train_state.make_sampler(
          run.config, run.params, run.schedule.num_timesteps, jnp.asarray(label)[indices % len(label)])
    images = sampling.sample_each(
        seed, indices, generator_fn, run.schedule, run.config.image_shape, run.config.generator.nz)
    return images if run.config.data.is_points else sampling.to_uint8(images)

  return np.concatenate([np.asarray(sample_batch(first)) for first in range(0, num, batch_size)])[:num]


def save(
    path: str, images: np.ndarray, title: str = '', label: np.ndarray | None = None,
    inputs: np.ndarray | None = None) -> None:
  """Writes [n, H, W, C] uint8 images to a grid (.png), an array (.npz) or a folder; `check_out` first.

  Float32 points go to a scatter picture with a title (.png), or an array. With labels [k], of which image i has number
  i mod k, a grid has a column for each of them, and an array has `labels` [n] beside it. What the images were made
  from, `inputs` [m, H, W, C] uint8, begins the grid, is another array, or lies in the folder as input_0.png, ….
  """
  ending = os.path.splitext(path)[1].lower()
  if ending == '.png' and inputs is not None:
    both = np.concatenate([inputs, images])
    grids.save_png(path, grids.make_grid(both, columns=min(len(both), _COLUMNS)))
  elif ending == '.png':
    columns = len(label) if label is not None and 1 < len(label) <= len(images) else None
    grids.save_png(path, grids.make_picture(images, title, columns))
  elif ending == '.npz':
    known = {} if label is None else {'labels': np.resize(label, len(images))}
    known |= {} if inputs is None else {'inputs': inputs}
    np.savez_compressed(path, images=images, **known)
  else:
    for i, image in enumerate(() if inputs is None else inputs):
      grids.save_png(os.path.join(path, f'input_{i}.png'), image)
    for i, image in enumerate(images):
      grids.save_png(os.path.join(path, f'{i:06d}.png'), image)


def check_out(path: str) -> None:
  """Raises ConfigError for a target that `save` would not know or would mix with other files."""
  ending = os.path.splitext(path)[1].lower()
  if ending not in ('', '.png', '.npz'):
    raise ConfigError(f'--out: found {path!r}, must end in .png (a grid) or .npz (an array), or be a folder')
  if not ending and os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
    raise ConfigError(f'--out: {path!r} exists and is not an empty folder; choose another')
  folder = path if not ending else os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--out: {folder!r} cannot be written to; choose another')
