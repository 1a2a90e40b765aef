"""Interpolation between two samples or two images: pure functions for jit, vmap and notebooks.

An argument of the wrong type, shape or range raises TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion, sampling
from ddgan_jax.editing import replacement
from ddgan_jax.sampling import GeneratorFn
from ddgan_jax.utils import checks

__all__ = ['interpolate', 'interpolate_given_noise', 'interpolate_images', 'slerp']


def interpolate(
    key_a: jax.Array,
    key_b: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    shape: tuple[int, int, int],
    latent_dim: int,
    num_frames: int,
) -> jax.Array:
  """Interpolates between the samples of two keys; see `interpolate_given_noise`.

  Args:
    key_a, key_b: typed PRNG keys. With fold_in(key(seed), i), the first and last frame are images of
      `sampling.sample_each`.
    generator_fn, schedule, latent_dim: see `sampling.sample`.
    shape: (H, W, C) of one image.
    num_frames: at least 2, including both ends.

  Returns:
    [num_frames, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  checks.key('key_a', key_a)
  checks.key('key_b', key_b)
  checks.shape('shape', shape, 'H W C')
  draws = [sampling.draw_noise(key, shape, schedule.num_timesteps, latent_dim) for key in (key_a, key_b)]
  x_T, z, posterior_noise = (jnp.stack(pair, axis) for pair, axis in zip(zip(*draws), (0, 1, 1)))
  return interpolate_given_noise(generator_fn, schedule, x_T, z, posterior_noise, num_frames)


def interpolate_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
    num_frames: int,
) -> jax.Array:
  """Interpolates between two samples in x_T, in the z of every level, and optionally in the posterior noise.

  Spherical interpolation (`slerp`) keeps the norm of the noise. Only the direction of z matters, since G normalises z.

  Args:
    generator_fn, schedule: see `sampling.sample_given_noise`.
    x_T: [2, H, W, C] float32, standard normal, for the first and the last frame.
    z: [T, 2, nz] float32, standard normal.
    posterior_noise: [T, 2, H, W, C] float32, standard normal, interpolated; or [T, 1, H, W, C], the same in each frame.
    num_frames: at least 2, including both ends.

  Returns:
    [num_frames, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  checks.floats('x_T', x_T, 'frames H W C', frames=2)
  checks.floats('z', z, 'T frames nz', frames=2)
  checks.floats('posterior_noise', posterior_noise, 'T frames H W C', T=len(z))
  checks.whole('num_frames', num_frames, 2)
  weights = jnp.linspace(0, 1, num_frames)
  path = jax.vmap(slerp, (None, None, 0))  # over frames
  paths = jax.vmap(path, (0, 0, None))  # over levels, then frames
  if posterior_noise.shape[1] == 1:
    posterior_noise = jnp.repeat(posterior_noise, num_frames, axis=1)
  else:
    posterior_noise = paths(posterior_noise[:, 0], posterior_noise[:, 1], weights)
  return sampling.sample_given_noise(
      generator_fn, schedule, path(*x_T, weights), paths(z[:, 0], z[:, 1], weights), posterior_noise)


def interpolate_images(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    images: jax.Array,
    latent_dim: int,
    from_level: int,
    num_frames: int,
) -> jax.Array:
  """Interpolates between two images: mixes them, diffuses to level L and denoises, with the same noise in each frame.

      x_L = sqrt_alpha_bar[L] ((1 - w) images[0] + w images[1]) + sigma_bar[L] noise    (Ho et al., 2020, section 4.3)

  The ends resemble the images, as with `image_to_image`, but do not equal them.

  Args:
    key, generator_fn, schedule, latent_dim: see `sampling.sample`.
    images: [2, H, W, C] float32 in [-1, 1].
    from_level: L in 1 … T.
    num_frames: at least 2, including both ends.

  Returns:
    [num_frames, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  checks.floats('images', images, 'images H W C', images=2)
  checks.whole('num_frames', num_frames, 2)
  replacement.check_level(from_level, schedule)
  weights = jnp.linspace(0, 1, num_frames)[:, None, None, None]
  mixed = (1 - weights) * images[0] + weights * images[1]
  noise, z, posterior_noise = sampling.draw_noise(key, images.shape[1:], from_level, latent_dim)
  x = diffusion.q_sample(schedule, mixed, jnp.full(num_frames, from_level), noise)
  repeat = lambda rows: jnp.repeat(rows[:, None], num_frames, axis=1)
  return sampling.sample_given_noise(generator_fn, schedule, x, repeat(z), repeat(posterior_noise))


def slerp(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
  """Spherical linear interpolation (Shoemake, 1985): the angle to a is proportional to `weight`.

      sin((1 - w) θ) / sin θ a + sin(w θ) / sin θ b,        cos θ = <a, b> / (|a| |b|)

  Where a and b are parallel, it is the linear interpolation (1 - w) a + w b.

  Args:
    a, b: arrays of the same shape, each treated as one vector.
    weight: w, scalar in [0, 1]; 0 is a, 1 is b.

  Returns:
    Like a; if a and b have equal norms, the result has that norm.
  """
  lengths = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
  cosine = jnp.vdot(a, b) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))
  parallel = jnp.sin(angle) < 1e-4  # about where float32 cannot resolve the angle
  sine = jnp.where(parallel, 1, jnp.sin(angle))
  weight_a = jnp.where(parallel, 1 - weight, jnp.sin((1 - weight) * angle) / sine)
  weight_b = jnp.where(parallel, weight, jnp.sin(weight * angle) / sine)
  return weight_a * a + weight_b * b


def __dir__() -> list[str]:
  return __all__
