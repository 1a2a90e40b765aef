"""Resampling by 2 with a separable FIR filter, without custom kernels (Zhang, ICML 2019; StyleGAN2, appendix).

`fir_down` filters, then keeps every second pixel; `fir_up` inserts zeros, filters, and scales by 4, so that a constant
stays constant away from the border. The border is zero-padded. For the kernel [1, 3, 3, 1], per axis,

    down  y[i]    = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8
    up    y[2i]   = (x[i-1] + 3 x[i]) / 4        y[2i+1] = (3 x[i] + x[i+1]) / 4

Two implementations agree up to rounding. Weighted sums of strided slices are 11 to 150 times faster on CPUs; a
depthwise convolution is 3 to 4 times faster on TPUs. The platform that the program is *compiled for* decides, so a TPU
program compiled ahead of time on another machine uses the convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Kernel = Sequence[float]


def fir_down(x: jax.Array, kernel: Kernel) -> jax.Array:
  """Halves H and W: applies the FIR filter and keeps every second pixel.

  Args:
    x: [B, H, W, C], H and W even.
    kernel: two or more taps along one axis; normalised to sum 1.

  Returns:
    [B, H/2, W/2, C], dtype of x.
  """
  return _filter(x, tuple(kernel), 2, 1, (len(kernel) - 1) // 2, (len(kernel) - 2) // 2)


def fir_up(x: jax.Array, kernel: Kernel) -> jax.Array:
  """Doubles H and W: inserts zeros between pixels and applies the FIR filter with gain 2 per axis.

  [B, H, W, C] → [B, 2H, 2W, C]; for the kernel see `fir_down`.
  """
  return _filter(x, tuple(kernel), 1, 2, (len(kernel) + 1) // 2, (len(kernel) - 2) // 2)


def fir_before_strided_conv(x: jax.Array, kernel: Kernel) -> jax.Array:
  """Applies the FIR filter before a VALID 3x3 convolution of stride 2; together they halve H and W.

  [B, H, W, C] → [B, H+1, W+1, C]; for the kernel see `fir_down`.
  """
  return _filter(x, tuple(kernel), 1, 1, (len(kernel) + 1) // 2, len(kernel) // 2)


def mean_down(x: jax.Array) -> jax.Array:
  """Halves H and W by the mean of each 2x2 block; [B, H, W, C] → [B, H/2, W/2, C]."""
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) * 0.25


def nearest_up(x: jax.Array) -> jax.Array:
  """Doubles H and W by repeating each pixel; [B, H, W, C] → [B, 2H, 2W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))  # traced and differentiated once per shape
def _filter(x: jax.Array, kernel: tuple[float, ...], stride: int, up: int, left: int, right: int) -> jax.Array:
  """On both axes: inserts `up` - 1 zeros per pixel, pads, filters by `up` times the taps, keeps every `stride`-th."""
  settings = (kernel, stride, up, left, right)
  return jax.lax.platform_dependent(
      x, tpu=lambda x: _filter_by_conv(x, *settings), default=lambda x: _filter_by_shifts(x, *settings))


def _filter_by_shifts(x: jax.Array, kernel: Kernel, stride: int, up: int, left: int, right: int) -> jax.Array:
  taps = up * _taps(kernel)
  for axis in (1, 2):
    x = _up_shifts(x, taps, axis, left) if up == 2 else _filter_shifts(x, taps, axis, stride, left, right)
  return x


def _filter_by_conv(x: jax.Array, kernel: Kernel, stride: int, up: int, left: int, right: int) -> jax.Array:
  taps = up * _taps(kernel)
  channels = x.shape[-1]
  weights = np.broadcast_to(np.outer(taps, taps)[:, :, None, None], (len(taps), len(taps), 1, channels))
  # Each pixel is followed by a zero, including the last one, which lhs_dilation leaves out.
  pad = (left, right + (up - 1))
  return jax.lax.conv_general_dilated(
      x, jnp.asarray(weights, x.dtype), (stride, stride), (pad, pad), lhs_dilation=(up, up),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=channels)


def _taps(kernel: Kernel) -> np.ndarray:
  taps = np.asarray(kernel, np.float64)
  return taps[::-1] / taps.sum()  # reversed: the sums below are correlations, a filter is a convolution


def _filter_shifts(x: jax.Array, taps: np.ndarray, axis: int, stride: int, left: int, right: int) -> jax.Array:
  size = (x.shape[axis] + left + right - len(taps)) // stride + 1
  widths = [(0, 0)] * x.ndim
  widths[axis] = (left, right)
  x = jnp.pad(x, widths)
  return sum(
      np.asarray(tap, x.dtype) * jax.lax.slice_in_dim(x, k, k + stride * (size - 1) + 1, stride, axis)
      for k, tap in enumerate(taps) if tap)


def _up_shifts(x: jax.Array, taps: np.ndarray, axis: int, left: int) -> jax.Array:
  size = x.shape[axis]
  # Output 2i + phase uses the taps k for which 2i + phase + k - left is even: a pixel, not an inserted zero.
  reach = [[(k, (phase + k - left) // 2) for k in range(len(taps)) if (phase + k - left) % 2 == 0] for phase in (0, 1)]
  shifts = [shift for phase in reach for _, shift in phase]
  before, after = max(0, -min(shifts)), max(0, max(shifts))
  widths = [(0, 0)] * x.ndim
  widths[axis] = (before, after)
  x = jnp.pad(x, widths)
  phases = [
      sum(np.asarray(taps[k], x.dtype) * jax.lax.slice_in_dim(x, before + shift, before + shift + size, 1, axis)
          for k, shift in phase) for phase in reach]
  stacked = jnp.stack(phases, axis + 1)
  return stacked.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1:])
