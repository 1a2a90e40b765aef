"""The orthonormal Haar transform of 2x2 blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Rows: the mean (times 2), and the differences of the block's rows, columns and diagonals.
_SIGNS = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


def forward(x: jax.Array) -> jax.Array:
  """Transforms each 2x2 block (a b; c d) to (a+b+c+d)/2, (a+b-c-d)/2, (a-b+c-d)/2, (a-b-c+d)/2.

  Args:
    x: [..., H, W, C] with even H and W.

  Returns:
    [..., H/2, W/2, 4C], the four coefficients as blocks of C channels. Sums of squares are preserved, so white noise
    stays white.
  """
  a, b, c, d = (x[..., i::2, j::2, :] for i in range(2) for j in range(2))
  return jnp.concatenate(_combine((a, b, c, d)), axis=-1)


def inverse(y: jax.Array) -> jax.Array:
  """The inverse of `forward`, which is its transpose: [..., H/2, W/2, 4C] → [..., H, W, C]."""
  a, b, c, d = _combine(jnp.split(y, 4, axis=-1))  # the matrix is symmetric
  rows = [jnp.stack(pair, axis=-2) for pair in ((a, b), (c, d))]  # [..., H/2, W/2, 2, C]
  *batch, height, width, _, channels = rows[0].shape
  return jnp.stack(rows, axis=-4).reshape(*batch, 2 * height, 2 * width, channels)


def _combine(four: tuple[jax.Array, ...] | list[jax.Array]) -> list[jax.Array]:
  return [sum(sign * x for sign, x in zip(signs, four, strict=True)) / 2 for signs in _SIGNS]
