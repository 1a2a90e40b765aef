"""The T-step sampler (paper, section 3.2): pure functions for jit, vmap and notebooks.

In each step the generator predicts the clean image and x_t is drawn from the posterior: T evaluations of G in total.

An argument of the wrong type, shape or range raises TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion
from ddgan_jax.utils import checks

__all__ = [
    'GeneratorFn', 'Trajectory', 'draw_noise', 'map_in_batches', 'max_batch_size', 'sample', 'sample_each',
    'sample_given_noise', 'sample_in_batches', 'to_uint8', 'to_values', 'trajectory', 'trajectory_each',
    'trajectory_given_noise']

GeneratorFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_MAX_NOISE = 2**27  # floats, half a GiB; the noise of T steps takes T times the memory of an image


class Trajectory(NamedTuple):
  """All denoising steps, noisiest first: predictions[i] = G(x_t[i], T-1-i, z), and x_t[i+1] is sampled from it.

  Attributes:
    x_t: [T+1, B, H, W, C] float32, x_T, x_{T-1}, …, x_0; the last row is the sample.
    predictions: [T, B, H, W, C] float32, the clean images predicted by G.
  """

  x_t: jax.Array
  predictions: jax.Array


def sample_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
) -> jax.Array:
  """Samples images; deterministic, because all noise is an argument.

  For t = T-1 … 0: x_0_pred = G(x_{t+1}, t, z), x_t ~ q(x_t | x_{t+1}, x_0_pred).

  With L < T rows of z and posterior_noise, x_T is taken as x_L, and sampling starts at t = L-1.

  Args:
    generator_fn: (x_tp1 [B, H, W, C], t [B] int32, z [B, nz]) → x_0_pred [B, H, W, C].
    schedule: the tables of the T steps that G was trained with.
    x_T: [B, H, W, C] float32, standard normal.
    z: [T, B, nz] float32, standard normal; row 0 is used first, at t = T-1.
    posterior_noise: [T, B, H, W, C] float32, standard normal; row 0 is used first, and the last row has weight 0.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  return _denoise(generator_fn, schedule, x_T, z, posterior_noise, keep=False)[0]


def trajectory_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
) -> Trajectory:
  """Like `sample_given_noise`, with the same arguments, but returns all denoising steps."""
  _, (x_t, predictions) = _denoise(generator_fn, schedule, x_T, z, posterior_noise, keep=True)
  return Trajectory(jnp.concatenate([x_T[None], x_t]), predictions)


def _denoise(
    generator_fn: GeneratorFn, schedule: diffusion.Schedule, x_T: jax.Array, z: jax.Array, posterior_noise: jax.Array,
    keep: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
  """Returns x_0 and, if `keep`, (x_{T-1} … x_0, predictions), stacked."""
  _check(generator_fn, schedule)
  checks.floats('x_T', x_T, 'B H W C')
  batch, height, width, channels = x_T.shape
  checks.floats('z', z, 'T B nz', B=batch)
  checks.floats(
      'posterior_noise', posterior_noise, 'T B H W C', T=len(z), B=batch, H=height, W=width, C=channels)
  if not 1 <= len(z) <= schedule.num_timesteps:
    raise ValueError(f'z has {len(z)} rows; use 1 … {schedule.num_timesteps} (T)')
  # A scan compiles one copy of G, an unrolled loop T copies.
  def denoise(x_tp1, step):
    t, z_t, noise = step
    t = jnp.full((x_tp1.shape[0],), t, jnp.int32)
    x_0_pred = generator_fn(x_tp1, t, z_t)
    x_t = diffusion.sample_posterior(schedule, x_0_pred, x_tp1, t, noise)
    return x_t, (x_t, x_0_pred) if keep else None

  levels = jnp.arange(len(z) - 1, -1, -1, dtype=jnp.int32)
  return jax.lax.scan(denoise, x_T, (levels, z, posterior_noise))


def draw_noise(
    key: jax.Array, shape: tuple[int, ...], num_timesteps: int, latent_dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws the noise of `sample_given_noise`.

  Args:
    key: a typed PRNG key, used once.
    shape: (B, H, W, C); or (H, W, C) for one image, for a vmap over keys with out_axes=(0, 1, 1).
    num_timesteps: T.
    latent_dim: nz.

  Returns:
    (x_T `shape`, z [T, (B,) nz], posterior_noise [T, *shape]), float32, standard normal.
  """
  checks.key('key', key)
  checks.shape('shape', shape, 'B H W C', 'H W C')
  checks.whole('num_timesteps', num_timesteps, 1)
  checks.whole('latent_dim', latent_dim, 0)
  x_T_key, z_key, noise_key = jax.random.split(key, 3)
  return (
      jax.random.normal(x_T_key, shape),
      jax.random.normal(z_key, (num_timesteps, *shape[:-3], latent_dim)),
      jax.random.normal(noise_key, (num_timesteps, *shape)),
  )


def max_batch_size(num_timesteps: int, shape: tuple[int, int, int], latent_dim: int) -> int:
  """The largest batch of [H, W, C] images whose noise fits into 512 MiB; at least 1.

  `draw_noise` draws the noise of all steps at once: 4 T (H W C + nz) bytes per image.
  """
  return max(1, _MAX_NOISE // (num_timesteps * (math.prod(shape) + latent_dim)))


def sample(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int, int],
    latent_dim: int,
) -> jax.Array:
  """Samples images from a key.

  Args:
    key: a typed PRNG key, `jax.random.key(seed)`; used once.
    generator_fn: see `sample_given_noise`.
    schedule: the tables of `diffusion.make_schedule`.
    shape: (B, H, W, C) of the images.
    latent_dim: nz, the dimension of z.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  _check(generator_fn, schedule)
  checks.shape('shape', shape, 'B H W C')
  noise = draw_noise(key, shape, schedule.num_timesteps, latent_dim)
  return sample_given_noise(generator_fn, schedule, *noise)


def trajectory(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int, int],
    latent_dim: int,
) -> Trajectory:
  """Like `sample`, with the same arguments, but returns all denoising steps."""
  _check(generator_fn, schedule)
  checks.shape('shape', shape, 'B H W C')
  noise = draw_noise(key, shape, schedule.num_timesteps, latent_dim)
  return trajectory_given_noise(generator_fn, schedule, *noise)


def sample_each(
    seed: int,
    indices: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int],
    latent_dim: int,
) -> jax.Array:
  """Samples images by index: image i is a function of (seed, i), independent of the rest of the batch.

  Args:
    seed: 0 … 2**32 - 1.
    indices: [B] int32, the image indices.
    generator_fn, schedule, latent_dim: see `sample`.
    shape: (H, W, C) of one image.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  _check(generator_fn, schedule)
  noise = _draw_each(seed, indices, shape, schedule.num_timesteps, latent_dim)
  return sample_given_noise(generator_fn, schedule, *noise)


def trajectory_each(
    seed: int,
    indices: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int],
    latent_dim: int,
) -> Trajectory:
  """Like `sample_each`, with the same arguments, but returns all denoising steps."""
  _check(generator_fn, schedule)
  noise = _draw_each(seed, indices, shape, schedule.num_timesteps, latent_dim)
  return trajectory_given_noise(generator_fn, schedule, *noise)


def _draw_each(
    seed: int, indices: jax.Array, shape: tuple[int, int, int], num_timesteps: int, latent_dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws noise like `draw_noise`; row i is a function of (seed, indices[i])."""
  checks.whole('seed', seed, 0, 2**32 - 1)
  checks.integers('indices', indices, 'B')
  checks.shape('shape', shape, 'H W C')
  keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)
  draw = functools.partial(draw_noise, shape=shape, num_timesteps=num_timesteps, latent_dim=latent_dim)
  return jax.vmap(draw, out_axes=(0, 1, 1))(keys)


def sample_in_batches(
    seed: int,
    indices: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int],
    latent_dim: int,
) -> jax.Array:
  """Samples the images of `sample_each` in one program, in batches of at most `max_batch_size`.

  `generator_fn` is called with the rows of one batch, so it must not depend on the image index.
  """
  return map_in_batches(
      lambda batch: sample_each(seed, batch, generator_fn, schedule, shape, latent_dim),
      max_batch_size(schedule.num_timesteps, shape, latent_dim), indices)


def map_in_batches(function: Callable[..., jax.Array], max_rows: int, *rows: jax.Array) -> jax.Array:
  """Computes `function(*rows)` sequentially, in batches of equal size.

  Args:
    function: arrays [n, …] → [n, …]; row i of the result depends only on row i of the arguments.
    max_rows: the largest batch, at least 1.
    *rows: arrays [n, …].

  Returns:
    [n, …].
  """
  count = len(rows[0])
  num_batches = -(-count // max_rows)
  if num_batches == 1:
    return function(*rows)
  size = -(-count // num_batches)
  batches = [jnp.resize(jnp.asarray(row), (num_batches, size, *row.shape[1:])) for row in rows]
  results = jax.lax.map(lambda batch: function(*batch), batches)
  return results.reshape(-1, *results.shape[2:])[:count]


def to_uint8(images: jax.Array) -> jax.Array:
  """Quantises float images in [-1, 1] to uint8 in 0 … 255, rounding to nearest and clipping.

  Raises:
    TypeError: the images are not floating point.
  """
  checks.floats('images', images)
  return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def to_values(images: jax.Array, value_range: tuple[float, float]) -> jax.Array:
  """Maps float images linearly from [-1, 1] to [lowest, highest], the units of the data.

  Raises:
    TypeError: the images are not floating point.
  """
  checks.floats('images', images)
  lowest, highest = value_range
  return lowest + (images + 1) * ((highest - lowest) / 2)


def _check(generator_fn: GeneratorFn, schedule: diffusion.Schedule) -> None:
  checks.function('generator_fn', generator_fn, '(x_tp1, t, z)')
  checks.instance('schedule', schedule, diffusion.Schedule, 'from diffusion.make_schedule')


def __dir__() -> list[str]:
  return __all__
