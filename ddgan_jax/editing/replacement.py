"""Editing by replacement during sampling: inpainting, image-to-image and super-resolution, without extra training.

Pure functions for jit, vmap and notebooks. Each takes the generator_fn and schedule of any run (`ddgan_jax.load`), with
any T. Level 0 is the clean image, level T is noise.
An argument of the wrong type, shape or range raises TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import diffusion, sampling
from ddgan_jax.sampling import GeneratorFn
from ddgan_jax.utils import checks

__all__ = [
    'block_means', 'check_level', 'check_mask', 'enlarge', 'image_to_image', 'inpaint', 'inpaint_given_noise',
    'super_resolve', 'super_resolve_given_noise']


def inpaint(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    image: jax.Array,
    mask: jax.Array,
    latent_dim: int,
    num_resamples: int = 10,
) -> jax.Array:
  """Inpaints the masked pixels of images and keeps all others; see `inpaint_given_noise`.

  Takes T * num_resamples evaluations of G. x_T, z and the posterior noise come from `sampling.draw_noise`, so with
  num_resamples=1 and a mask of ones the result is `sampling.sample` with the same key.

  Args:
    key, generator_fn, schedule, latent_dim: see `sampling.sample`.
    image: [B, H, W, C] float32 in [-1, 1]; masked pixels are ignored.
    mask: bool or 0/1, broadcasts to `image`, such as [H, W, 1]; True marks pixels to inpaint.
    num_resamples: passes through each level, at least 1; with 1 there is no resampling.

  Returns:
    [B, H, W, C] float32; where the mask is False it is `image`, bit for bit.
  """
  checks.key('key', key)
  checks.floats('image', image, 'B H W C')
  checks.whole('num_resamples', num_resamples, 1)
  known_key, forward_key = jax.random.split(jax.random.fold_in(key, 1))
  x_T, z, posterior_noise = sampling.draw_noise(
      key, image.shape, schedule.num_timesteps * num_resamples, latent_dim)
  return inpaint_given_noise(
      generator_fn, schedule, image, mask, x_T, z, posterior_noise,
      known_noise=jax.random.normal(known_key, posterior_noise.shape),
      forward_noise=jax.random.normal(forward_key, posterior_noise.shape))


def inpaint_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    image: jax.Array,
    mask: jax.Array,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
    known_noise: jax.Array,
    forward_noise: jax.Array,
) -> jax.Array:
  """Inpaints images by RePaint (Lugmayr et al., 2022, Algorithm 1); deterministic, because all noise is an argument.

  For t = T-1 … 0, num_resamples times each: x_t ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z)), then the known pixels of x_t are
  replaced by a sample of q(x_t | image). Before the next pass, one Markov step goes back up,

      x_{t+1} = sqrt_alpha[t+1] x_t + sigma[t+1] noise

  which harmonises the two parts of x_t. Unlike Algorithm 1, this also resamples from level 0, because with T of 1 or 2
  the image is hardly visible at any other level.

  Args:
    generator_fn, schedule, image, mask: see `inpaint`.
    x_T: [B, H, W, C] float32, standard normal.
    z: [S, B, nz] float32, standard normal, S = T * num_resamples; row 0 is used first.
    posterior_noise: [S, B, H, W, C] float32, standard normal, for the masked pixels.
    known_noise: like posterior_noise, for the known pixels.
    forward_noise: like posterior_noise, for the Markov step; the row of the last pass of each level is not used.

  Returns:
    [B, H, W, C] float32; where the mask is False it is `image`, bit for bit.

  Raises:
    ValueError: S is not a multiple of T.
  """
  checks.floats('image', image, 'B H W C')
  check_mask(mask, image.shape)
  num_timesteps = schedule.num_timesteps
  num_resamples, rest = divmod(len(z), num_timesteps)
  if rest or not num_resamples:
    raise ValueError(f'z has {len(z)} rows; use a multiple of T = {num_timesteps}')
  mask = jnp.asarray(mask).astype(bool)

  def keep_known(x_t, t, noise):
    return jnp.where(mask, x_t, diffusion.q_sample(schedule, image, t, noise))

  x_0 = _denoise_corrected(
      generator_fn, schedule, x_T, z, posterior_noise, keep_known, known_noise, num_resamples, forward_noise)
  return jnp.where(mask, x_0, image)


def image_to_image(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    image: jax.Array,
    latent_dim: int,
    from_level: int,
) -> jax.Array:
  """Diffuses images to level L and denoises them, which turns a stroke painting into a realistic image.

      x_L ~ q(x_L | image), then x_t ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z)) for t = L-1 … 0

  This is the paper's stroke-based synthesis, after SDEdit (Meng et al., 2022). Takes L evaluations of G. Every row has
  its own noise, so repeating one image gives variations of it.

  Args:
    key, generator_fn, schedule, latent_dim: see `sampling.sample`.
    image: [B, H, W, C] float32 in [-1, 1].
    from_level: L in 1 … T. A low level stays close to the image, a high level is closer to the data; at T hardly
      anything of the image remains.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  checks.floats('image', image, 'B H W C')
  check_level(from_level, schedule)
  noise, z, posterior_noise = sampling.draw_noise(key, image.shape, from_level, latent_dim)
  x = diffusion.q_sample(schedule, image, jnp.full(image.shape[:1], from_level), noise)
  return sampling.sample_given_noise(generator_fn, schedule, x, z, posterior_noise)


def super_resolve(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    small: jax.Array,
    latent_dim: int,
    factor: int,
) -> jax.Array:
  """Super-resolves images by an integer factor; see `super_resolve_given_noise`.

  Args:
    key, generator_fn, schedule, latent_dim: see `sampling.sample`.
    small: [B, h, w, C] float32 in [-1, 1].
    factor: N, at least 1; N h and N w are the size of G's images.

  Returns:
    [B, N h, N w, C] float32; see `super_resolve_given_noise`.
  """
  checks.floats('small', small, 'B h w C')
  checks.whole('factor', factor, 1)
  batch, height, width, channels = small.shape
  noise = sampling.draw_noise(
      key, (batch, factor * height, factor * width, channels), schedule.num_timesteps, latent_dim)
  reference_noise = jax.random.normal(jax.random.fold_in(key, 1), noise[-1].shape)
  return super_resolve_given_noise(generator_fn, schedule, small, *noise, reference_noise)


def super_resolve_given_noise(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    small: jax.Array,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
    reference_noise: jax.Array,
) -> jax.Array:
  """Super-resolves images by ILVR (Choi et al., 2021, Algorithm 1); deterministic, because all noise is an argument.

  Let y be the small image enlarged to full size, and let low_pass replace each N x N block by its mean. At each level

      x_t ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z)),        x_t <- x_t - low_pass(x_t) + low_pass(y_t),  y_t ~ q(y_t | y)

  Block means are an orthogonal projection (ILVR's bicubic filter is not), so the constraint is exact: the N x N block
  means of the result equal `small` up to float32 rounding. The result may leave [-1, 1]; where `sampling.to_uint8`
  clips, the block means change.

  Args:
    generator_fn, schedule, small: see `super_resolve`.
    x_T: [B, H, W, C] float32, standard normal; H and W are the same multiple N of those of `small`.
    z: [T, B, nz] float32, standard normal; row 0 is used first.
    posterior_noise: [T, B, H, W, C] float32, standard normal.
    reference_noise: like posterior_noise, for y_t.

  Returns:
    [B, H, W, C] float32.

  Raises:
    ValueError: H and W are not the same multiple of h and w.
  """
  checks.floats('small', small, 'B h w C')
  checks.floats('x_T', x_T, 'B H W C', B=small.shape[0], C=small.shape[3])
  factor = x_T.shape[1] // small.shape[1]
  if x_T.shape[1:3] != (factor * small.shape[1], factor * small.shape[2]):
    raise ValueError(f'small has size {small.shape[1:3]}; use one that divides {x_T.shape[1:3]} by one integer factor')
  reference = enlarge(small, factor)

  def match(x_t, t, noise):
    y_t = diffusion.q_sample(schedule, reference, t, noise)
    return x_t + enlarge(block_means(y_t, factor) - block_means(x_t, factor), factor)

  return _denoise_corrected(generator_fn, schedule, x_T, z, posterior_noise, match, reference_noise)


def block_means(images: jax.Array, factor: int) -> jax.Array:
  """The mean of each N x N block, N = `factor`; [..., N h, N w, C] → [..., h, w, C]."""
  *batch, height, width, channels = images.shape
  blocks = images.reshape(*batch, height // factor, factor, width // factor, factor, channels)
  return blocks.mean((-4, -2))


def enlarge(images: jax.Array, factor: int) -> jax.Array:
  """Repeats each pixel N x N times, N = `factor`; [..., h, w, C] → [..., N h, N w, C]."""
  return jnp.repeat(jnp.repeat(images, factor, axis=-3), factor, axis=-2)


def _denoise_corrected(
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    x_T: jax.Array,
    z: jax.Array,
    posterior_noise: jax.Array,
    correct: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    correction_noise: jax.Array,
    num_resamples: int = 1,
    forward_noise: jax.Array | None = None,
) -> jax.Array:
  """The sampling loop, with a correction of each x_t and `num_resamples` passes through each level."""
  levels = np.repeat(np.arange(schedule.num_timesteps - 1, -1, -1, dtype=np.int32), num_resamples)
  go_back = np.arange(1, len(levels) + 1) % num_resamples != 0

  def denoise(x_tp1, step):
    t, again, z_t, noise, noise_c, noise_f = step
    t = jnp.full(x_tp1.shape[:1], t, jnp.int32)
    x_t = diffusion.sample_posterior(schedule, generator_fn(x_tp1, t, z_t), x_tp1, t, noise)
    x_t = correct(x_t, t, noise_c)
    if noise_f is None:
      return x_t, None
    return jnp.where(again, diffusion.q_step(schedule, x_t, t, noise_f), x_t), None

  x_0, _ = jax.lax.scan(denoise, x_T, (levels, go_back, z, posterior_noise, correction_noise, forward_noise))
  return x_0


def check_level(level: int, schedule: diffusion.Schedule) -> None:
  """Raises TypeError or ValueError unless `level` is an integer in 1 … T."""
  checks.whole('from_level', level, 1, schedule.num_timesteps, 'T')


def check_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
  """Raises ValueError unless `mask` contains only 0 and 1 and broadcasts to images of this shape."""
  mask = mask if hasattr(mask, 'shape') else np.asarray(mask)
  checks.broadcasts('mask', mask, 'image', shape)
  checks.values('mask', mask, 0, 1)


def __dir__() -> list[str]:
  return __all__
