"""The blocks of the NCSN++ generator: adaptive group norm, residual blocks, attention, resampling layers.

Images are [B, H, W, C]. `dtype` is the dtype of a module's arithmetic; parameters, norm statistics and softmax are
float32.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import GeneratorConfig
from ddgan_jax.models import labels, resample
from ddgan_jax.models.initializers import default_init

INV_SQRT_2 = float(1 / np.sqrt(2))


def sinusoids(t: jax.Array, width: int) -> jax.Array:
  """Sinusoidal embedding [sin, cos] of t, with width/2 frequencies exp(-ln(10000) k / (width/2 - 1)).

  Args:
    t: [B] int32 or float32.
    width: even, at least 4.

  Returns:
    [B, width] float32.
  """
  half = width // 2
  frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


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


@functools.partial(jax.jit, static_argnames='eps')  # traced and differentiated once per shape
def normalise(x: jax.Array, scale: jax.Array, shift: jax.Array, eps: float = 1e-6) -> jax.Array:
  """Computes scale * group_norm(x) + shift as one multiply-add per pixel.

  The variance is E[x²] - E[x]² in float32, in one pass. Its error is 1e-7 if a group's mean is comparable to
  its standard deviation, and grows with the square of their ratio.

  Args:
    x: [B, H, W, C].
    scale: [C] or [B, C] float32.
    shift: [C] or [B, C] float32.
    eps: added to the variance.

  Returns:
    Like x.
  """
  batch, _, _, channels = x.shape
  groups = num_groups(channels)
  x_32 = x.astype(jnp.float32)

  def group_mean(per_pixel):
    return per_pixel.mean((1, 2)).reshape(batch, groups, -1).mean(2)

  mean = group_mean(x_32)
  variance = jnp.maximum(group_mean(x_32 * x_32) - mean * mean, 0.0)
  inverse_std = jax.lax.rsqrt(variance + eps)
  gain = _to_channels(inverse_std, channels) * scale
  offset = shift - _to_channels(mean, channels) * gain
  return (x_32 * gain[:, None, None, :] + offset[:, None, None, :]).astype(x.dtype)


class GroupNorm(nn.Module):
  """Group norm with a learned scale and bias for each channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    return normalise(x, scale, bias)


class AdaptiveGroupNorm(nn.Module):
  """Group norm conditioned on the latent: scale(zemb) * group_norm(x) + shift(zemb) (paper, appendix C)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, zemb: jax.Array) -> jax.Array:
    channels = x.shape[-1]

    def scale_one_shift_zero(key, shape, dtype=jnp.float32):
      del key, shape
      return jnp.concatenate([jnp.ones(channels, dtype), jnp.zeros(channels, dtype)])

    style = nn.Dense(
        2 * channels, kernel_init=default_init(), bias_init=scale_one_shift_zero, dtype=self.dtype, name='style')(zemb)
    scale, shift = jnp.split(style.astype(jnp.float32), 2, axis=1)
    return normalise(x, scale, shift)


class LabelEmbedding(nn.Module):
  """A learned vector per class, plus one (the last row) for no label; for a stack, the sum over its images.

  Attributes:
    num_classes: number of classes of each image.
    stack: number of images per label.
    features: width of the vectors.
  """

  num_classes: int
  stack: int
  features: int

  @nn.compact
  def __call__(self, label: jax.Array | None, batch: int) -> jax.Array:
    """label [B] int32 (negative for no label), or None for no labels → [B, features] float32."""
    init = nn.initializers.normal(self.features**-0.5)
    tables = self.param('tables', init, (self.stack, self.num_classes + 1, self.features))
    label = jnp.full(batch, labels.NONE) if label is None else label
    rows = jnp.where(label[:, None] < 0, self.num_classes, labels.digits(label, self.stack))
    return jnp.asarray(tables)[jnp.arange(self.stack), rows].sum(1)  # the tables may be NumPy arrays


def conv3x3(
    features: int, name: str, dtype: jnp.dtype, init_scale: float = 1.0, padding: Any = 1, **kwargs) -> nn.Conv:
  """A 3x3 convolution with bias; zero-padded by 1 by default."""
  return nn.Conv(
      features, (3, 3), padding=padding, kernel_init=default_init(init_scale), dtype=dtype, name=name, **kwargs)


class Downsample(nn.Module):
  """Halves H and W by FIR (or, without FIR, by the mean); with `features`, by a 3x3 conv of stride 2.

  The conv is VALID and follows the FIR filter or, without FIR, one pixel of padding at the right and the bottom.
  """

  config: GeneratorConfig
  features: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.features is None:
      return resample.fir_down(x, self.config.fir_kernel) if self.config.fir else resample.mean_down(x)
    if self.config.fir:
      x, padding = resample.fir_before_strided_conv(x, self.config.fir_kernel), 0
    else:
      padding = ((0, 1), (0, 1))
    return conv3x3(self.features, 'conv', self.dtype, strides=2, padding=padding)(x)


class Upsample(nn.Module):
  """Doubles H and W by FIR (or, without FIR, nearest neighbour); with `features`, followed by a 3x3 conv."""

  config: GeneratorConfig
  features: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = resample.fir_up(x, self.config.fir_kernel) if self.config.fir else resample.nearest_up(x)
    if self.features is None:
      return x
    return conv3x3(self.features, 'conv', self.dtype)(x)


class Shortcut(nn.Module):
  """A 1x1 convolution and a resampling, in the order that processes fewer pixels.

  The two commute, except for the bias at a zero-padded border, where upsampling would blur it; it is added last.
  """

  features: int
  resample: str | None
  config: GeneratorConfig
  init_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.resample == 'down':
      x = Downsample(self.config)(x)
    kernel = self.param('kernel', default_init(self.init_scale), (x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype) @ kernel.astype(self.dtype)
    if self.resample == 'up':
      x = Upsample(self.config)(x)
    return x + bias.astype(self.dtype)


class ResidualBlock(nn.Module):
  """A BigGAN or DDPM residual block with adaptive group norm; `resample` is None, 'up' or 'down' (BigGAN only)."""

  features: int
  config: GeneratorConfig
  resample: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, temb: jax.Array | None, zemb: jax.Array | None, row_indices: jax.Array | None = None
  ) -> jax.Array:
    """x [B, H, W, C], SiLU(temb) [B, 4nf] or None, zemb [B, z_emb_dim] or None → [B, H', W', features].

    `row_indices` [B] int32, indices in the global batch, enables dropout.
    """
    config = self.config
    def adaptive_norm(name, h):
      return GroupNorm(name=name)(h) if zemb is None else AdaptiveGroupNorm(self.dtype, name=name)(h, zemb)

    h = nn.silu(adaptive_norm('norm_0', x))
    if self.resample == 'up':
      h = Upsample(config)(h)
    elif self.resample == 'down':
      h = Downsample(config)(h)
    h = conv3x3(self.features, 'conv_0', self.dtype)(h)
    if temb is not None:
      time = nn.Dense(self.features, kernel_init=default_init(), dtype=self.dtype, name='time_dense')(temb)
      h = h + time[:, None, None, :]
    h = GroupNorm(name='norm_1')(h) if config.resblock_type == 'biggan_oneadagn' else adaptive_norm('norm_1', h)
    h = nn.silu(h)
    if config.dropout and row_indices is not None:
      h = dropout(self.make_rng('dropout'), h, config.dropout, row_indices)
    h = conv3x3(self.features, 'conv_1', self.dtype, init_scale=0.0)(h)
    if self.resample or x.shape[-1] != self.features:
      init_scale = 0.1 if config.resblock_type == 'ddpm' else 1.0
      x = Shortcut(self.features, self.resample, config, init_scale, self.dtype, name='shortcut')(x)
    return residual_sum(x, h, config)


def dropout(key: jax.Array, x: jax.Array, rate: float, row_indices: jax.Array) -> jax.Array:
  """Zeroes entries of x [B, ...] with probability `rate` and scales the others by 1 / (1 - rate).

  A row's mask is a function of the key and its index [B] in the global batch, however the batch is sharded.
  """
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(row_indices)
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0)


def residual_sum(x: jax.Array, h: jax.Array, config: GeneratorConfig) -> jax.Array:
  """x + h; with `skip_rescale` divided by sqrt(2), which preserves the variance."""
  return (x + h) * INV_SQRT_2 if config.skip_rescale else x + h


class SelfAttention(nn.Module):
  """Single-head self-attention over the H*W pixels, with softmax in float32."""

  config: GeneratorConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape

    def linear(name, init_scale=0.1):
      return nn.Dense(channels, kernel_init=default_init(init_scale), dtype=self.dtype, name=name)

    h = GroupNorm(name='norm')(x)
    q, k, v = (linear(name)(h).reshape(batch, height * width, 1, channels) for name in ('query', 'key', 'value'))
    h = jax.nn.dot_product_attention(q, k, v).reshape(batch, height, width, channels)
    return residual_sum(x, linear('out', init_scale=0.0)(h), self.config)
