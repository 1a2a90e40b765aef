"""Editing by optimizing the sampler's noise to match a measurement: pure functions for jit, vmap and notebooks.

`replacement` conditions the generator on pixels or block means only through a noisy x_t, and with few levels x_t is
nearly all noise. But with few levels, the whole sampler is a short differentiable function of its noise.

An argument of the wrong type, shape or range raises TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ddgan_jax import diffusion, sampling
from ddgan_jax.editing import replacement
from ddgan_jax.sampling import GeneratorFn
from ddgan_jax.utils import checks

__all__ = ['inpaint', 'sample_matching', 'super_resolve']


def sample_matching(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    measure: Callable[[jax.Array], jax.Array],
    target: jax.Array,
    shape: tuple[int, int, int, int],
    latent_dim: int,
    num_steps: int = 100,
    tolerance: float = 0.05,
    learning_rate: float = 0.1,
) -> jax.Array:
  """Samples images x with measure(x) ≈ `target`, by changing the noise of a random sample as little as possible.

  Let S be the sampler as a function of its noise w = (x_T, z, posterior noise), and w_0, e ~ N(0, I). Adam minimises

      |w - w_0|² / 2 + |measure(S(w)) - target - tolerance e|² / (2 tolerance²)

  If measure(S(w)) is linear, the minimum is an exact sample of w given measure(S(w)) + tolerance e = target (randomised
  maximum likelihood; Bardsley et al., 2014). It costs about 3 T num_steps evaluations of G and the memory of T backward
  passes, so it is for the small T of DDGANs.

  Args:
    key, generator_fn, schedule, latent_dim: see `sampling.sample`, which gives the initial sample.
    measure: differentiable function, [B, H, W, C] images → [B, ...], independent for each row.
    target: [B, ...] float32, the desired measurement.
    shape: (B, H, W, C) of the images.
    num_steps: number of Adam steps.
    tolerance: standard deviation of the measurement error, in the units of `target`.
    learning_rate: Adam's initial learning rate; decays to 0 with a cosine.

  Returns:
    [B, H, W, C] float32 images, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly).
  """
  checks.function('measure', measure, 'images')
  checks.floats('target', target)
  checks.whole('num_steps', num_steps, 1)
  if not tolerance > 0:
    raise ValueError(f'tolerance is {tolerance}; use a value above 0')
  start = sampling.draw_noise(key, shape, schedule.num_timesteps, latent_dim)
  target = target + tolerance * jax.random.normal(jax.random.fold_in(key, 1), target.shape)
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

  def objective(noise):
    misfit = measure(sampling.sample_given_noise(generator_fn, schedule, *noise)) - target
    moved = sum(jnp.sum((new - old) ** 2) for new, old in zip(noise, start))
    return 0.5 * (moved + jnp.sum(misfit**2) / tolerance**2)

  def descend(carry, _):
    noise, state = carry
    updates, state = optimizer.update(jax.grad(objective)(noise), state)
    return (optax.apply_updates(noise, updates), state), None

  (noise, _), _ = jax.lax.scan(descend, (start, optimizer.init(start)), length=num_steps)
  return sampling.sample_given_noise(generator_fn, schedule, *noise)


def inpaint(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    image: jax.Array,
    mask: jax.Array,
    latent_dim: int,
    num_steps: int = 100,
) -> jax.Array:
  """Inpaints images with samples that match the known pixels, by `sample_matching`.

  Args:
    key, generator_fn, schedule, image, mask, latent_dim: see `replacement.inpaint`.
    num_steps: number of Adam steps.

  Returns:
    [B, H, W, C] float32; where the mask is False it is `image`, bit for bit.
  """
  checks.floats('image', image, 'B H W C')
  replacement.check_mask(mask, image.shape)
  mask = jnp.asarray(mask).astype(bool)
  measure = lambda x: jnp.where(mask, 0, x)
  x = sample_matching(
      key, generator_fn, schedule, measure, measure(image), image.shape, latent_dim, num_steps)
  return jnp.where(mask, x, image)


def super_resolve(
    key: jax.Array,
    generator_fn: GeneratorFn,
    schedule: diffusion.Schedule,
    small: jax.Array,
    latent_dim: int,
    factor: int,
    num_steps: int = 100,
) -> jax.Array:
  """Samples full-size images whose N x N block means match `small`, by `sample_matching` (PULSE, Menon et al., 2020).

  At the end the remaining difference is added to each block, so that the block means equal `small` up to float32
  rounding, as in `replacement.super_resolve`.

  Args:
    key, generator_fn, schedule, small, latent_dim, factor: see `replacement.super_resolve`.
    num_steps: number of Adam steps.

  Returns:
    [B, N h, N w, C] float32; see `replacement.super_resolve_given_noise`.
  """
  checks.floats('small', small, 'B h w C')
  checks.whole('factor', factor, 1)
  batch, height, width, channels = small.shape
  measure = lambda x: replacement.block_means(x, factor)
  # The error of a mean of N² pixels is N times smaller than that of one pixel.
  x = sample_matching(
      key, generator_fn, schedule, lambda x: factor * measure(x), factor * small,
      (batch, factor * height, factor * width, channels), latent_dim, num_steps)
  return x + replacement.enlarge(small - measure(x), factor)


def __dir__() -> list[str]:
  return __all__
