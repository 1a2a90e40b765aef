"""Group norms of the NCSN++ generator, alone and followed by SiLU; also adaptive to the latent (paper, appendix C).

Images are [B, H, W, C]. Statistics, scale and shift are float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.models.initializers import default_init

Parts = tuple[jax.Array, ...]  # arrays to concatenate along the last axis

_EPS = 1e-6  # added to the variance


def num_groups(channels: int) -> int:
  """Number of groups of a group norm: the largest divisor of `channels` up to min(channels // 4, 32)."""
  groups = max(1, min(channels // 4, 32))
  while channels % groups:
    groups -= 1
  return groups


def _to_channels(per_group: jax.Array, channels: int) -> jax.Array:
  """Repeats each finite value for all channels of its group; [B, groups] float32 → [B, channels]."""
  repeats = channels // per_group.shape[1]

  def repeat(per_group):
    return jnp.repeat(per_group, repeats, axis=1)

  def product(per_group):
    # XLA:CPU would fuse a repeat into the loop over all pixels, and then not vectorise that loop.
    repetition = np.repeat(np.eye(per_group.shape[1], dtype=np.float32), repeats, axis=1)
    return jnp.matmul(per_group, repetition, precision=jax.lax.Precision.HIGHEST)

  return jax.lax.platform_dependent(per_group, cpu=product, default=repeat)


def _affine(
    parts: Parts, scale: jax.Array, shift: jax.Array, added: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Computes gain and offset, [B, C] float32, such that gain * x + offset = scale * group_norm(x + added) + shift.

  The variance is E[x²] - E[x]² in float32, in one pass. Its error is 1e-7 if the means of x and `added` are comparable
  to the standard deviation, and grows with the square of their ratio.
  """
  channels = sum(part.shape[-1] for part in parts)
  groups = num_groups(channels)

  def channel_mean(function):
    return jnp.concatenate([function(part.astype(jnp.float32)).mean((1, 2)) for part in parts], axis=1)

  def group_mean(per_channel):
    return per_channel.reshape(-1, groups, channels // groups).mean(2)

  mean, square = channel_mean(lambda x: x), channel_mean(jnp.square)
  if added is not None:
    square += added * (2 * mean + added)
    mean += added
  mean, square = group_mean(mean), group_mean(square)
  variance = jnp.maximum(square - mean * mean, 0.0)
  gain = _to_channels(jax.lax.rsqrt(variance + _EPS), channels) * scale
  mean = _to_channels(mean, channels)
  return gain, shift - (mean if added is None else mean - added) * gain


@jax.jit  # traced and differentiated once per shape
def normalise(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """Computes scale * group_norm(x) + shift as one multiply-add per pixel.

  Args:
    x: [B, H, W, C].
    scale, shift: [C] or [B, C] float32.

  Returns:
    Like x.
  """
  return _apply(x, *_affine((x,), scale, shift)).astype(x.dtype)


@jax.jit
def normalise_silu(
    parts: Parts, scale: jax.Array, shift: jax.Array, added: jax.Array | None = None) -> jax.Array:
  """Computes SiLU(scale * group_norm(x + added) + shift), where x is the concatenation of `parts`.

  XLA need not store x or x + added. On GPUs the backward pass computes the slope of SiLU twice, for the sums over the
  pixels and for each pixel, instead of storing it (benchmarks/gpu_traffic.md); elsewhere that is slower or unmeasured.

  Args:
    parts: arrays [B, H, W, C_i] of one dtype; C is the sum of the C_i.
    scale, shift: [C] or [B, C] float32.
    added: [C] or [B, C] float32, or None for 0.

  Returns:
    [B, H, W, C], dtype of the parts.
  """
  gain, offset = _affine(parts, scale, shift, added)
  borders = np.cumsum([part.shape[-1] for part in parts])[:-1].tolist()
  gains, offsets = jnp.split(gain, borders, axis=1), jnp.split(offset, borders, axis=1)
  return jnp.concatenate([_silu_of_affine(*each) for each in zip(parts, gains, offsets)], axis=-1)


def _silu_of_affine(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  """SiLU(gain * x + offset), like x."""
  return jax.lax.platform_dependent(
      x, gain, offset, cuda=_silu_recomputed, rocm=_silu_recomputed, default=_silu_stored)


def _silu_stored(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  return nn.silu(_apply(x, gain, offset).astype(x.dtype))


@jax.custom_jvp
def _silu_recomputed(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  return nn.silu(_apply(x, gain, offset)).astype(x.dtype)


@_silu_recomputed.defjvp
def _silu_recomputed_jvp(primals, tangents):
  x, gain, offset = primals
  x_dot, gain_dot, offset_dot = tangents
  # The barrier keeps XLA from sharing the slope between the two terms, which would store it.
  again = jax.lax.optimization_barrier(x)
  y_dot = (_silu_slope(x, gain, offset) * gain[:, None, None, :] * x_dot.astype(jnp.float32)
           + _silu_slope(again, gain, offset) * _apply(again, gain_dot, offset_dot))
  return _silu_recomputed(x, gain, offset), y_dot.astype(x.dtype)


def _apply(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  return x.astype(jnp.float32) * gain[:, None, None, :] + offset[:, None, None, :]


def _silu_slope(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  h = _apply(x, gain, offset)
  sigmoid = jax.nn.sigmoid(h)
  return sigmoid * (1 + h * (1 - sigmoid))


class GroupNorm(nn.Module):
  """Group norm with a learned scale and bias for each channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return normalise(x, *_scale_and_bias(self, x.shape[-1]))


class GroupNormSilu(nn.Module):
  """Group norm with a learned scale and bias for each channel, then SiLU; for the arguments see `normalise_silu`."""

  @nn.compact
  def __call__(self, parts: Parts, added: jax.Array | None = None) -> jax.Array:
    return normalise_silu(parts, *_scale_and_bias(self, sum(part.shape[-1] for part in parts)), added)


def _scale_and_bias(module: nn.Module, channels: int) -> tuple[jax.Array, jax.Array]:
  return (module.param('scale', nn.initializers.ones, (channels,)),
          module.param('bias', nn.initializers.zeros, (channels,)))


class AdaptiveGroupNormSilu(nn.Module):
  """Group norm conditioned on the latent, then SiLU: SiLU(scale(zemb) * group_norm(x) + shift(zemb)) (appendix C)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, parts: Parts, zemb: jax.Array, added: jax.Array | None = None) -> jax.Array:
    channels = sum(part.shape[-1] for part in parts)

    def scale_one_shift_zero(key, shape, dtype=jnp.float32):
      del key, shape
      return jnp.concatenate([jnp.ones(channels, dtype), jnp.zeros(channels, dtype)])

    style = nn.Dense(
        2 * channels, kernel_init=default_init(), bias_init=scale_one_shift_zero, dtype=self.dtype, name='style')(zemb)
    scale, shift = jnp.split(style.astype(jnp.float32), 2, axis=1)
    return normalise_silu(parts, scale, shift, added)
