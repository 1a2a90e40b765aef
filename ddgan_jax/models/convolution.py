"""A 3x3 convolution whose weight gradient is fast on CPUs too.

XLA's CPU backend takes the gradient of a wide kernel at many pixels at a quarter of the speed of the forward pass. Here
it is a sum over pieces of images of matrix products, on CPUs alone: programs for other platforms are as before.

`convolve`, `input_gradient` and `weight_gradient` are the three derivatives of <convolve(x, kernel), g>, so each has
the other two as its own, to any order, in reverse mode; JAX refuses to differentiate them forward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_PIECE = 256  # pixels of a product; more leave the cache, fewer are short sums


def same_size(x: jax.Array, kernel: jax.Array, *unused, **unused_too) -> jax.Array:
  """The zero-padded 3x3 convolution of stride 1, as flax's `conv_general_dilated`, whose other arguments say the same.

  Args:
    x: [B, H, W, C].
    kernel: [3, 3, C, F], dtype of x.

  Returns:
    [B, H, W, F], dtype of x.
  """
  del unused, unused_too
  batch, height, width, channels = x.shape
  # Where XLA's own weight gradient is as fast, or there are too few channels for a product, nothing is changed.
  slow = height * width >= _PIECE and batch * height * width >= 8 * _PIECE and channels >= 48
  return (convolve if slow else _convolve)(x, kernel)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, C], kernel [3, 3, C, F] of the same dtype → [B, H, W, F]."""
  return _convolve(x, kernel)


@jax.custom_vjp
def input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
  """Gradient of <convolve(x, kernel), g> by x: g [B, H, W, F], kernel [3, 3, C, F] → [B, H, W, C]."""
  x = jax.ShapeDtypeStruct((*g.shape[:3], kernel.shape[2]), g.dtype)
  return jax.linear_transpose(lambda x: _convolve(x, kernel), x)(g)[0]


@jax.custom_vjp
def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """Gradient of <convolve(x, kernel), g> by the kernel: x [B, H, W, C], g [B, H, W, F] → [3, 3, C, F], dtype of x."""
  return jax.lax.platform_dependent(x, g, cpu=_by_products, default=_by_convolution)


convolve.defvjp(
    lambda x, kernel: (convolve(x, kernel), (x, kernel)),
    lambda saved, g: (input_gradient(g, saved[1]), weight_gradient(saved[0], g)))
input_gradient.defvjp(
    lambda g, kernel: (input_gradient(g, kernel), (g, kernel)),
    lambda saved, x: (convolve(x, saved[1]), weight_gradient(x, saved[0])))
weight_gradient.defvjp(
    lambda x, g: (weight_gradient(x, g), (x, g)),
    lambda saved, kernel: (input_gradient(saved[1], kernel), convolve(saved[0], kernel)))


def _convolve(x, kernel):
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _by_convolution(x, g):
  kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
  return jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(g)[0]


def _by_products(x, g):
  """For each piece, some rows of one image, three products: with the image shifted along H, and along W side by side.

  In a loop, so that the program does not grow with the batch; the sums are float32.
  """
  batch, height, width, channels = x.shape
  features = g.shape[-1]
  rows = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * width <= _PIECE))
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

  def add_piece(i, total):
    corner = i // (height // rows), i % (height // rows) * rows, 0, 0
    piece = jax.lax.dynamic_slice(padded, corner, (1, rows + 2, width + 2, channels))[0]
    shifted = jnp.concatenate([piece[:, k:k + width] for k in range(3)], axis=-1)
    transposed = jax.lax.dynamic_slice(g, corner, (1, rows, width, features)).reshape(-1, features).T
    return total + jnp.stack([
        jnp.matmul(transposed, shifted[k:k + rows].reshape(-1, 3 * channels), preferred_element_type=jnp.float32)
        for k in range(3)])

  total = jnp.zeros((3, features, 3 * channels), jnp.float32)
  total = jax.lax.fori_loop(0, batch * (height // rows), add_piece, total)
  return total.reshape(3, features, 3, channels).transpose(0, 2, 3, 1).astype(x.dtype)
