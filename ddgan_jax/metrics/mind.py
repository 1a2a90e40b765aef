"""The Monge Inception distance, MIND (Berthet et al. 2026, arXiv 2605.06797)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.metrics import distances
from ddgan_jax.utils import checks

__all__ = ['monge_distance']

_BLOCK = 50  # directions projected and sorted at a time
_STREAM = 1  # separates our draws from `default_rng(seed)`, which callers may have used for their features


def monge_distance(real: np.ndarray, fake: np.ndarray, num_directions: int = 1000, seed: int = 0) -> float:
  """The sliced Wasserstein distance of order 2, squared, times 3 D.

  3 D times the mean, over random unit vectors u, of the mean squared difference between the sorted projections on u of
  both sets. With features of the FID Inception network this is MIND. It is biased upwards like FID: two samples of one
  distribution have a positive distance, which falls with their size.

  Args:
    real: [N, D] features.
    fake: [M, D] features; of the larger set, a random subset as large as the other is used.
    num_directions: number of random directions.
    seed: the seed of the directions and of the subset.

  Returns:
    The distance, ≥ 0.

  Raises:
    UserError: a set has fewer than two samples.
    ValueError, TypeError: an argument has another shape or dtype, or is not finite.
  """
  distances.check_features(real, fake)
  checks.whole('num_directions', num_directions, 1)
  size = min(len(real), len(fake))
  rng = np.random.default_rng((seed, _STREAM))
  directions = rng.standard_normal((num_directions, real.shape[1]))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  # Subtract the real mean from both sets: differences stay the same and float32 keeps more digits.
  centre = np.mean(real, axis=0, dtype=np.float64)
  sets = [np.float32((each if len(each) == size else each[np.sort(rng.permutation(len(each))[:size])]) - centre)
          for each in (real, fake)]
  total = sum(float(_squared_differences(*sets, np.float32(directions[first:first + _BLOCK])).sum())
              for first in range(0, num_directions, _BLOCK))
  return 3 * real.shape[1] * total / num_directions


@jax.jit
def _squared_differences(x: jax.Array, y: jax.Array, directions: jax.Array) -> jax.Array:
  """[n, D] twice and [m, D] → the mean squared difference of the sorted projections on each direction, [m]."""
  a, b = (jnp.sort(jnp.matmul(directions, each.T, precision='highest'), axis=1) for each in (x, y))
  return jnp.square(a - b).mean(1)


def __dir__() -> list[str]:
  return __all__
