"""The blocks of the NCSN++ generator: residual blocks, attention, resampling layers.

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
from ddgan_jax.models.norms import AdaptiveGroupNormSilu, GroupNorm, GroupNormSilu, Parts

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


class Conv(nn.Module):
  """A convolution: scale * (conv(x) + bias).

  Scales the kernel and the bias instead of the result, which saves a pass over it.

  Attributes:
    features: output channels.
    size: height and width of the kernel.
    strides: of both axes.
    padding: as in `jax.lax.conv_general_dilated`; by default a 3x3 kernel keeps H and W.
    use_bias: whether there is a bias.
    init_scale: the variance of the initial kernel, see `default_init`.
    scale: factor of the result.
    dtype: dtype of the arithmetic.
  """

  features: int
  size: int = 3
  strides: int = 1
  padding: Any = ((1, 1), (1, 1))
  use_bias: bool = True
  init_scale: float = 1.0
  scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, add_bias: bool = True) -> jax.Array | tuple[jax.Array, jax.Array]:
    """[B, H, W, C] → [B, H', W', features]. With `add_bias=False`, (result without bias, scaled bias [features])."""
    kernel = self.param(
        'kernel', default_init(self.init_scale), (self.size, self.size, x.shape[-1], self.features))
    y = jax.lax.conv_general_dilated(
        x.astype(self.dtype), self._scaled(kernel).astype(self.dtype), (self.strides, self.strides), self.padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    if not self.use_bias:
      return y
    bias = self._scaled(self.param('bias', nn.initializers.zeros, (self.features,)))
    return y + bias.astype(self.dtype) if add_bias else (y, bias)

  def _scaled(self, parameter: jax.Array) -> jax.Array:
    return parameter if self.scale == 1 else self.scale * parameter


class Downsample(nn.Module):
  """Halves H and W by FIR (or, without FIR, by the mean); with `features`, by a 3x3 conv of stride 2, times `scale`.

  The conv is VALID and follows the FIR filter or, without FIR, one pixel of padding at the right and the bottom.
  """

  config: GeneratorConfig
  features: int | None = None
  scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.features is None:
      return resample.fir_down(x, self.config.fir_kernel) if self.config.fir else resample.mean_down(x)
    if self.config.fir:
      x, padding = resample.fir_before_strided_conv(x, self.config.fir_kernel), ((0, 0), (0, 0))
    else:
      padding = ((0, 1), (0, 1))
    return Conv(self.features, strides=2, padding=padding, scale=self.scale, dtype=self.dtype, name='conv')(x)


class Upsample(nn.Module):
  """Doubles H and W by FIR (or, without FIR, nearest neighbour); with `features`, then a 3x3 conv, times `scale`."""

  config: GeneratorConfig
  features: int | None = None
  scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = resample.fir_up(x, self.config.fir_kernel) if self.config.fir else resample.nearest_up(x)
    if self.features is None:
      return x
    return Conv(self.features, scale=self.scale, dtype=self.dtype, name='conv')(x)


class Shortcut(nn.Module):
  """A 1x1 convolution and a resampling, in the order that processes fewer pixels.

  The two commute, except for the bias at a zero-padded border, where upsampling would blur it; it is added last. The
  result is multiplied by `scale`, as in `Conv`.
  """

  features: int
  resample: str | None
  config: GeneratorConfig
  init_scale: float = 1.0
  scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, parts: Parts) -> jax.Array:
    """The concatenation of `parts`, [B, H, W, C_i] each, → [B, H', W', features]."""
    widths = [part.shape[-1] for part in parts]
    kernel = self.param('kernel', default_init(self.init_scale), (sum(widths), self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    kernels = jnp.split((self.scale * kernel).astype(self.dtype), np.cumsum(widths)[:-1].tolist())
    if self.resample == 'down':
      parts = [Downsample(self.config)(part) for part in parts]
    x = sum(part.astype(self.dtype) @ kernel for part, kernel in zip(parts, kernels))
    if self.resample == 'up':
      x = Upsample(self.config)(x)
    return x + (self.scale * bias).astype(self.dtype)


class ResidualBlock(nn.Module):
  """A BigGAN or DDPM residual block with adaptive group norm; `resample` is None, 'up' or 'down' (BigGAN only)."""

  features: int
  config: GeneratorConfig
  resample: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self, parts: Parts, temb: jax.Array | None, zemb: jax.Array | None, row_indices: jax.Array | None = None
  ) -> jax.Array:
    """Applies the block to the concatenation of `parts`.

    Args:
      parts: arrays [B, H, W, C_i].
      temb: SiLU of the time embedding, [B, 4nf], or None.
      zemb: the style vector, [B, z_emb_dim], or None for norms that are not adaptive.
      row_indices: [B] int32, indices in the global batch, for dropout; None disables it.

    Returns:
      [B, H', W', features].
    """
    config = self.config

    def norm_silu(name, parts, added=None, adaptive=True):
      if zemb is None or not adaptive:
        return GroupNormSilu(name=name)(parts, added)
      return AdaptiveGroupNormSilu(self.dtype, name=name)(parts, zemb, added)

    h = norm_silu('norm_0', parts)
    if self.resample == 'up':
      h = Upsample(config)(h)
    elif self.resample == 'down':
      h = Downsample(config)(h)
    # The norm adds the bias and the time embedding, which are constant over pixels.
    h, added = Conv(self.features, dtype=self.dtype, name='conv_0')(h, add_bias=False)
    if temb is not None:
      time = nn.Dense(self.features, kernel_init=default_init(), dtype=self.dtype, name='time_dense')(temb)
      added += time.astype(jnp.float32)
    h = norm_silu('norm_1', (h,), added, adaptive=config.resblock_type != 'biggan_oneadagn')
    if config.dropout and row_indices is not None:
      h = dropout(self.make_rng('dropout'), h, config.dropout, row_indices)
    scale = residual_scale(config)
    h = Conv(self.features, init_scale=0.0, scale=scale, dtype=self.dtype, name='conv_1')(h)
    if self.resample or sum(part.shape[-1] for part in parts) != self.features:
      init_scale = 0.1 if config.resblock_type == 'ddpm' else 1.0
      return h + Shortcut(self.features, self.resample, config, init_scale, scale, self.dtype, name='shortcut')(parts)
    return h + scale * jnp.concatenate(parts, axis=-1)


def dropout(key: jax.Array, x: jax.Array, rate: float, row_indices: jax.Array) -> jax.Array:
  """Zeroes entries of x [B, ...] with probability `rate` and scales the others by 1 / (1 - rate).

  A row's mask is a function of the key and its index [B] in the global batch, however the batch is sharded.
  """
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(row_indices)
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0)


def residual_scale(config: GeneratorConfig) -> float:
  """The factor of both terms of a residual sum; with `skip_rescale` 1 / sqrt(2), which preserves the variance."""
  return INV_SQRT_2 if config.skip_rescale else 1.0


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
    return (x + linear('out', init_scale=0.0)(h)) * residual_scale(self.config)
