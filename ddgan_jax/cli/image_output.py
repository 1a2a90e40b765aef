"""Samples images from a run and writes images to files, for all commands that do."""

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

_COLUMNS = 10  # of a grid that starts with its inputs


def generate(
    run: ddgan_jax.Run, num: int, seed: int, batch_size: int = 100, label: int | np.ndarray | None = None
) -> np.ndarray:
  """Samples `num` images of a run.

  Args:
    run: a run of `ddgan_jax.load`.
    num, batch_size: number of images, and the maximum batch size.
    seed: image i is a function of (seed, i).
    label: an integer, or [k] labels, of which image i gets label i mod k; by default that of the run.

  Returns:
    [num, H, W, C] uint8; for points, [num, 1, 1, 2] float32.

  Raises:
    ConfigError: the run has no such label, or requires one.
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
  """Writes [n, H, W, C] uint8 images to a grid (.png), an array (.npz) or a folder; call `check_out` first.

  Float32 points go to a scatter plot with a title (.png) or to an array. With labels [k], image i has label i mod k: a
  grid has one column per label, and an .npz also has `labels` [n]. `inputs` [m, H, W, C] uint8, the images that were
  edited, come first in a grid, are `inputs` in an .npz, and input_0.png, … in a folder.
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
  """Raises ConfigError for a path of an unknown type, a folder that is not empty, or a read-only folder."""
  ending = os.path.splitext(path)[1].lower()
  if ending not in ('', '.png', '.npz'):
    raise ConfigError(f'--out is {path!r}; use a .png (a grid), an .npz (an array), or a folder')
  if not ending and os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
    raise ConfigError(f'--out is {path!r}, which exists and is not an empty folder; use another')
  folder = path if not ending else os.path.dirname(path) or '.'
  os.makedirs(folder, exist_ok=True)
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--out: {folder!r} is not writable; use another folder')
