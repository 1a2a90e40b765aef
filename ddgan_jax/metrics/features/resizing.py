"""Pillow's antialiased bicubic resizing (a = -0.5), in JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 22  # of the fraction of Pillow's weights for uint8
_LOW_BITS = 11


def bicubic(images_uint8: jax.Array, size: int) -> jax.Array:
  """Resizes uint8 [B, H, W, C] to float32 [B, size, size, C] in [0, 255], as Pillow resizes a float image (mode F).

  Not rounded, but clipped, because the filter overshoots. Differs from Pillow by less than 1e-4, rounding in float32.
  """
  weights = [_weights(length, size).astype(np.float32) for length in images_uint8.shape[1:3]]
  return jnp.clip(_rows(weights[0], _columns(weights[1], images_uint8.astype(jnp.float32))), 0, 255)


def bicubic_uint8(images_uint8: jax.Array, size: int) -> jax.Array:
  """Resizes uint8 [B, H, W, C] to [B, size, size, C], bit for bit as Pillow resizes a square uint8 image.

  Pillow rounds to uint8 after each direction, horizontal first, with weights of 22 bits in int32. Here each weight is
  split into two parts of 11 bits, so that their sums are exact in float32 for up to 64 weights, which suffices for
  images up to 16 times as large as `size`. Newer versions of Pillow resize images that are taller than wide vertically
  first, which differs from this function by the rounding in between.
  """
  x = images_uint8
  for apply, length in ((_columns, x.shape[2]), (_rows, x.shape[1])):
    weights = _weights(length, size) * 2**_BITS
    weights = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)
    high = (weights + 2 ** (_LOW_BITS - 1)) >> _LOW_BITS
    parts = [apply(part.astype(np.float32), x.astype(jnp.float32)).astype(jnp.int32)
             for part in (high, weights - (high << _LOW_BITS))]
    total = (parts[0] << _LOW_BITS) + parts[1] + 2 ** (_BITS - 1)
    x = jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)
  return x


def _columns(weights: np.ndarray, x: jax.Array) -> jax.Array:
  return jnp.einsum('ow,bhwc->bhoc', weights, x, precision='highest')


def _rows(weights: np.ndarray, x: jax.Array) -> jax.Array:
  return jnp.einsum('oh,bhwc->bowc', weights, x, precision='highest')


@functools.cache
def _weights(length: int, size: int) -> np.ndarray:
  """[size, length] float64; each row sums to 1. The filter is widened by the scale when it shrinks the image."""
  scale = length / size
  centers = (np.arange(size) + 0.5) * scale
  x = np.abs(np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1)
  weights = np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
  return weights / weights.sum(axis=1, keepdims=True)
