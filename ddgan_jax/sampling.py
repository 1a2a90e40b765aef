"""The T-step sampler (paper, section 3.2): pure functions for jit, vmap and notebooks.

Each step the generator predicts the clean image, and the posterior puts the right amount of noise back:
T evaluations of G and nothing else.

An argument of another type, shape or range than documented raises a TypeError or ValueError that names it.
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
    'GeneratorFn', 'Trajectory', 'draw_noise', 'in_parts', 'most_at_once', 'sample', 'sample_each',
    'sample_given_noise', 'sample_many', 'to_uint8', 'trajectory', 'trajectory_each', 'trajectory_given_noise']

GeneratorFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_MOST_NOISE = 2**27  # floats, half a GiB: a thousand steps need a thousand times an image


class Trajectory(NamedTuple):
  """Every step of a sampler, noisiest first: predictions[i] is G(x_t[i], t = T-1-i, z), and x_t[i+1] is drawn from it.

  Attributes:
    x_t: [T+1, B, H, W, C] float32: x_T, x_{T-1}, …, x_0; the last row is the sample.
    predictions: [T, B, H, W, C] float32, the clean images that G predicts.
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
  """Samples deterministically from all the noise that sampling needs.

  For t = T-1 … 0: x_0_pred = G(x_{t+1}, t, z), x_t ~ q(x_t | x_{t+1}, x_0_pred).

  With only L < T rows of z and of noise, x_T is taken as an x_L, and sampling starts there: t = L-1 … 0.

  Args:
    generator_fn: (x_tp1 [B, H, W, C], t [B] int32, z [B, nz]) → x_0_pred [B, H, W, C].
    schedule: the tables, of the T that G was trained with.
    x_T: [B, H, W, C] float32, standard normal.
    z: [T, B, nz] float32, standard normal; row 0 is used first, at t = T-1.
    posterior_noise: [T, B, H, W, C] float32, standard normal; row 0 is used first, the last row has weight 0.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh.
  """
  return _denoise(generator_fn, schedule, x_T, z, posterior_noise, keep=False)[0]


def trajectory_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
) -> Trajectory:
  """The steps of `sample_given_noise`, whose arguments it takes, and which returns the last x_t."""
  _, (x_t, predictions) = _denoise(generator_fn, schedule, x_T, z, posterior_noise, keep=True)
  return Trajectory(jnp.concatenate([x_T[None], x_t]), predictions)


def _denoise(
    generator_fn: GeneratorFn, schedule: diffusion.Schedule, x_T: jax.Array, z: jax.Array, posterior_noise: jax.Array,
    keep: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
  """x_0 and, if `keep`, (x_{T-1} … x_0, the predictions), stacked."""
  _check(generator_fn, schedule)
  checks.floats('x_T', x_T, 'B H W C')
  batch, height, width, channels = x_T.shape
  checks.floats('z', z, 'T B nz', B=batch)
  checks.floats(
      'posterior_noise', posterior_noise, 'T B H W C', T=len(z), B=batch, H=height, W=width, C=channels)
  if not 1 <= len(z) <= schedule.num_timesteps:
    raise ValueError(f'z: found {len(z)} rows, must be 1 … {schedule.num_timesteps} (T)')
  # A scan, because an unrolled loop compiles T copies of G.
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
  """Draws what `sample_given_noise` needs.

  Args:
    key: a typed PRNG key, used once.
    shape: (B, H, W, C); (H, W, C) draws for one image, to be vmapped over keys with out_axes=(0, 1, 1).
    num_timesteps: T.
    latent_dim: nz.

  Returns:
    x_T `shape`, z [T, (B,) nz], posterior_noise [T, *shape]; float32, standard normal.
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


def most_at_once(num_timesteps: int, shape: tuple[int, int, int], latent_dim: int) -> int:
  """How many images [H, W, C] may be sampled together: `draw_noise` makes the noise of all their steps at once.

  At least one, whose noise takes 4 T (H W C + nz) bytes.
  """
  return max(1, _MOST_NOISE // (num_timesteps * (math.prod(shape) + latent_dim)))


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
    schedule: the tables.
    shape: (B, H, W, C) of the images.
    latent_dim: nz, the dimension of z.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh.
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
  """Every step from noise to the images that `sample` returns for the same arguments."""
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
  """Samples images by number: image i is a function of (seed, i), whichever others are made beside it.

  Args:
    seed: 0 … 2**32 - 1.
    indices: [B] int32, which images.
    generator_fn, schedule, latent_dim: see `sample`.
    shape: (H, W, C) of one image.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh.
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
  """Every step from noise to the images that `sample_each` returns for the same arguments."""
  _check(generator_fn, schedule)
  noise = _draw_each(seed, indices, shape, schedule.num_timesteps, latent_dim)
  return trajectory_given_noise(generator_fn, schedule, *noise)


def _draw_each(
    seed: int, indices: jax.Array, shape: tuple[int, int, int], num_timesteps: int, latent_dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What `draw_noise` returns for a batch, row i a function of (seed, indices[i])."""
  checks.whole('seed', seed, 0, 2**32 - 1)
  checks.integers('indices', indices, 'B')
  checks.shape('shape', shape, 'H W C')
  keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)
  draw = functools.partial(draw_noise, shape=shape, num_timesteps=num_timesteps, latent_dim=latent_dim)
  return jax.vmap(draw, out_axes=(0, 1, 1))(keys)


def sample_many(
    seed: int,
    indices: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int],
    latent_dim: int,
) -> jax.Array:
  """The images of `sample_each`, in one program of as many parts as their noise needs (see `most_at_once`).

  generator_fn is called with the rows of a part, so it must not depend on which images they are.
  """
  return in_parts(
      lambda part: sample_each(seed, part, generator_fn, schedule, shape, latent_dim),
      most_at_once(schedule.num_timesteps, shape, latent_dim), indices)


def in_parts(function: Callable[..., jax.Array], most: int, *rows: jax.Array) -> jax.Array:
  """`function(*rows)`, computed for at most `most` rows at a time, in equal parts one after the other.

  Args:
    function: arrays of n rows → [n, …], row i a function of the rows i alone.
    most: rows of a part, at least 1.
    *rows: arrays [n, …].

  Returns:
    [n, …].
  """
  count = len(rows[0])
  parts = -(-count // most)
  if parts == 1:
    return function(*rows)
  size = -(-count // parts)
  split = [jnp.resize(jnp.asarray(row), (parts, size, *row.shape[1:])) for row in rows]
  found = jax.lax.map(lambda part: function(*part), split)
  return found.reshape(-1, *found.shape[2:])[:count]


def to_uint8(images: jax.Array) -> jax.Array:
  """Quantises [-1, 1] float images to 0 … 255 uint8, rounding to nearest and clipping, as a PNG stores them.

  Raises:
    TypeError: the images are not floating point.
  """
  checks.floats('images', images)
  return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def _check(generator_fn: GeneratorFn, schedule: diffusion.Schedule) -> None:
  checks.function('generator_fn', generator_fn, '(x_tp1, t, z)')
  checks.instance('schedule', schedule, diffusion.Schedule, 'diffusion.make_schedule makes one')


def __dir__() -> list[str]:
  return __all__
