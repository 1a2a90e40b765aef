"""The tasks of `ddgan edit`: uint8 images in, uint8 images out; image i is a function of (seed, i)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import sampling
from ddgan_jax.editing import interpolation, noise_optimization, replacement
from ddgan_jax.parallel import compilation


class Draws(NamedTuple):
  """The number of results, the seed of their noise, and the maximum batch size."""

  num: int
  seed: int
  batch_size: int = 100


def inpaint(
    run: Any, image: np.ndarray, mask: np.ndarray, draws: Draws, matching: bool, passes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Inpaints an image [H, W, C] uint8 where the mask [H, W, 1] bool is True; all other pixels are kept exactly.

  With `matching`, fits the sampler's noise to the known pixels in `passes` Adam steps (`noise_optimization`); otherwise
  replaces the known pixels of each x_t, with `passes` through each level (`replacement`). Returns the results
  [num, H, W, C] uint8, and the inputs [2, H, W, C] uint8: the image, and the image with the masked pixels grey.
  """
  module = noise_optimization if matching else replacement

  def edit(key):
    return module.inpaint(
        key, run.generator_fn, run.schedule, _to_float(image)[None], mask, run.config.generator.nz, passes)

  noise = run.schedule.num_timesteps * (1 if matching else 3 * passes)
  return _edit_each(run, edit, draws, noise), np.stack([image, np.where(mask, np.uint8(128), image)])


def image_to_image(run: Any, image: np.ndarray, draws: Draws, level: int) -> tuple[np.ndarray, np.ndarray]:
  """Diffuses an image [H, W, C] uint8 to `level` in 1 … T and denoises it; returns [num, H, W, C] and [1, H, W, C]."""
  image = image[None]

  def edit(key):
    return replacement.image_to_image(
        key, run.generator_fn, run.schedule, _to_float(image), run.config.generator.nz, level)

  return _edit_each(run, edit, draws, level), image


def interpolate_images(run: Any, images: np.ndarray, draws: Draws, level: int) -> tuple[np.ndarray, np.ndarray]:
  """Interpolates [2, H, W, C] uint8 images at `level` in 1 … T; returns `num` frames [num, H, W, C] and the images."""
  frames = compilation.jit(lambda: interpolation.interpolate_images(
      jax.random.key(draws.seed), run.generator_fn, run.schedule, _to_float(images), run.config.generator.nz, level,
      draws.num))()
  return np.asarray(sampling.to_uint8(frames)), images


def interpolate_samples(run: Any, between: tuple[int, int], draws: Draws) -> tuple[np.ndarray, np.ndarray]:
  """Interpolates two samples of the seed, given by index; returns [num, H, W, C] uint8 and no inputs, [0, H, W, C]."""
  key_a, key_b = (jax.random.fold_in(jax.random.key(draws.seed), number) for number in between)
  shape = run.config.image_shape
  frames = compilation.jit(lambda: interpolation.interpolate(
      key_a, key_b, run.generator_fn, run.schedule, shape, run.config.generator.nz, draws.num))()
  return np.asarray(sampling.to_uint8(frames)), np.zeros((0, *shape), np.uint8)


def super_resolve(
    run: Any, small: np.ndarray, factor: int, draws: Draws, matching: bool, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """Samples images whose block means are `small`, [H / factor, W / factor, C] uint8.

  With `matching`, fits the sampler's noise in `num_steps` Adam steps; otherwise replaces the block means of each x_t.
  Returns [num, H, W, C] uint8, and `small` enlarged, [1, H, W, C] uint8.
  """
  small = small[None]
  module, passes = (noise_optimization, (num_steps,)) if matching else (replacement, ())

  def edit(key):
    return module.super_resolve(
        key, run.generator_fn, run.schedule, _to_float(small), run.config.generator.nz, factor, *passes)

  return (_edit_each(run, edit, draws, 2 * run.schedule.num_timesteps),
          np.asarray(replacement.enlarge(small, factor)))


def _edit_each(run: Any, edit: Callable[[jax.Array], jax.Array], draws: Draws, noise: int) -> np.ndarray:
  """Runs `edit`, key → [1, H, W, C], for each result; `noise` is the number of noise images that it draws."""
  most = sampling.max_batch_size(noise, run.config.image_shape, run.config.generator.nz)
  batch_size = min(draws.batch_size, draws.num, most)

  @compilation.jit
  def edit_batch(first):
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(draws.seed)))(first + jnp.arange(batch_size))
    return sampling.to_uint8(jax.vmap(edit)(keys)[:, 0])

  return np.concatenate([np.asarray(edit_batch(first)) for first in range(0, draws.num, batch_size)])[:draws.num]


def _to_float(image: np.ndarray) -> np.ndarray:
  return image.astype(np.float32) / np.float32(127.5) - 1
