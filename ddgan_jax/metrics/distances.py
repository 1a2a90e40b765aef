"""Distances between two sets of features.

They are float32, from one matrix product per block of rows, so that 50,000 x 4096 features fit. Distances for which
the rounding of the product could matter are recomputed from differences.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.utils import checks

# Recomputed distances per row; an error would need more distances than this within rounding of a ball's radius.
_CANDIDATES = 16
_BLOCK_NUMBERS = 2**26  # elements of a block's largest float32 array


def check_features(
    real: np.ndarray, fake: np.ndarray, least_real: int = 2, least_fake: int = 2, name: str = 'real') -> None:
  """Raises an error unless both are finite features [N, D] and [M, D] of enough samples; `name` is that of `real`."""
  checks.numbers(name, real, 'number dimension')
  checks.numbers('fake', fake, 'number dimension', dimension=real.shape[1])
  for of, features, least in ((name, real, least_real), ('fake', fake, least_fake)):
    if len(features) < least:
      raise UserError(f'{of} has {len(features)} samples; use at least {least}')
    checks.finite(of, features)


def centred(
    real: np.ndarray, fake: np.ndarray, real_k: int, fake_k: int, name: str = 'real'
) -> tuple[np.ndarray, np.ndarray]:
  """Checks both and subtracts the mean of the reals, which keeps float32 products small and distances unchanged.

  Each sample of a set needs `real_k` or `fake_k` others.
  """
  checks.whole('k', max(real_k, fake_k), 1)
  check_features(real, fake, real_k + 1, fake_k + 1, name)
  mean = np.mean(real, axis=0, dtype=np.float64)
  return tuple(np.subtract(x, mean, out=np.empty(np.shape(x), np.float32), casting='same_kind') for x in (real, fake))


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
  """[N] squared distances to the k-th nearest other sample."""
  # More than k, because rounding may change their order.
  candidates = min(k + _CANDIDATES, len(x) - 1)
  block = _block_rows(len(x), x.shape[1], candidates)
  points = jnp.asarray(x)
  found = [
      _block_radii(points, _padded(x[i:i + block], block), jnp.arange(i, i + block), k, candidates)
      for i in range(0, len(x), block)]
  return np.concatenate([np.asarray(part) for part in found])[:len(x)]


def count_inside(rows: np.ndarray, columns: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """[len(rows)] int: number of columns within the squared radii, [1, columns] or [rows, 1], of each row."""
  candidates = min(_CANDIDATES, len(columns))
  block = _block_rows(len(columns), columns.shape[1], candidates)
  points = jnp.asarray(columns)
  found = []
  for i in range(0, len(rows), block):
    part = radii if len(radii) == 1 else _padded(radii[i:i + block], block)
    found.append(_block_count(points, _padded(rows[i:i + block], block), part, candidates))
  return np.concatenate([np.asarray(part) for part in found])[:len(rows)]


def nearest(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The index of the column nearest to each row, [len(rows)] int32, and the squared distances."""
  candidates = min(_CANDIDATES, len(columns))
  block = _block_rows(len(columns), columns.shape[1], candidates)
  points = jnp.asarray(columns)
  found = [_block_nearest(points, _padded(rows[i:i + block], block), candidates) for i in range(0, len(rows), block)]
  return tuple(np.concatenate([np.asarray(part) for part in parts])[:len(rows)] for parts in zip(*found))


def _block_rows(num_columns: int, dim: int, candidates: int) -> int:
  return int(np.clip(_BLOCK_NUMBERS // max(num_columns, candidates * dim), 1, 1024))


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
  """Pads the last block to the size of the others, so that it is not compiled again."""
  return np.pad(x, ((0, rows - len(x)), (0, 0)))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _block_radii(points: jax.Array, rows: jax.Array, indices: jax.Array, k: int, candidates: int) -> jax.Array:
  squared = _approximate(rows, points)
  squared = jnp.where(indices[:, None] == jnp.arange(len(points)), jnp.inf, squared)  # not its own neighbour
  _, nearest = jax.lax.top_k(-squared, candidates)
  return jnp.sort(_exact(rows, points[nearest]), axis=1)[:, k - 1]


@functools.partial(jax.jit, static_argnums=2)
def _block_nearest(points: jax.Array, rows: jax.Array, candidates: int) -> tuple[jax.Array, jax.Array]:
  _, chosen = jax.lax.top_k(-_approximate(rows, points), candidates)
  squared = _exact(rows, points[chosen])
  best = jnp.argmin(squared, axis=1, keepdims=True)
  return tuple(jnp.take_along_axis(array, best, axis=1)[:, 0] for array in (chosen, squared))


@functools.partial(jax.jit, static_argnums=3)
def _block_count(points: jax.Array, rows: jax.Array, radii: jax.Array, candidates: int) -> jax.Array:
  margin = _approximate(rows, points) - radii
  _, doubtful = jax.lax.top_k(-jnp.abs(margin), candidates)
  radii = jnp.take_along_axis(jnp.broadcast_to(radii, margin.shape), doubtful, axis=1)
  # A sample that is in both sets may be exactly on the sphere, which counts as inside despite rounding.
  inside = _exact(rows, points[doubtful]) <= radii * (1 + 1e-6)
  approximately_inside = jnp.take_along_axis(margin, doubtful, axis=1) <= 0
  return (margin <= 0).sum(axis=1) - approximately_inside.sum(axis=1) + inside.sum(axis=1)


def _approximate(rows: jax.Array, points: jax.Array) -> jax.Array:
  """[n, m] squared distances by one product, inaccurate where they are small compared to the norms."""
  product = jnp.matmul(rows, points.T, precision='highest')
  return (rows**2).sum(axis=1)[:, None] + (points**2).sum(axis=1) - 2 * product


def _exact(rows: jax.Array, neighbours: jax.Array) -> jax.Array:
  """[n, c] squared distances from row i to its neighbours [n, c, D], from differences."""
  return ((rows[:, None] - neighbours) ** 2).sum(axis=2)
