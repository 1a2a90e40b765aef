"""The kernel Inception distance, KID (Bińkowski et al. 2018); unbiased, so that 1,000 samples suffice."""

from __future__ import annotations

import numpy as np

from ddgan_jax.metrics import distances
from ddgan_jax.utils import checks

__all__ = ['kernel_distance']


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0,
) -> tuple[float, float]:
  """The squared maximum mean discrepancy with the kernel (x·y / D + 1)³, averaged over random subsets.

  Each subset gives a U-statistic (no pairs of a sample with itself), which can be negative.

  Args:
    real: [N, D] features.
    fake: [M, D] features.
    num_subsets: number of subsets.
    subset_size: samples of each set in a subset, at most N and M.
    seed: the seed of the draws without replacement.

  Returns:
    Mean and standard deviation over the subsets. Published KIDs are this mean, often times 1000.

  Raises:
    UserError: a set has fewer than two samples.
    ValueError, TypeError: an argument has another shape or dtype, or is not finite.
  """
  distances.check_features(real, fake)
  checks.whole('num_subsets', num_subsets, 1)
  checks.whole('subset_size', subset_size, 2)
  size = min(subset_size, len(real), len(fake))
  rng = np.random.default_rng(seed)
  draw = lambda features: features[rng.choice(len(features), size, replace=False)].astype(np.float64)
  found = [_u_statistic(draw(real), draw(fake)) for _ in range(num_subsets)]
  return float(np.mean(found)), float(np.std(found))


def _u_statistic(x: np.ndarray, y: np.ndarray) -> float:
  n = len(x)
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
  within = lambda k: (k.sum() - np.trace(k)) / (n * (n - 1))
  return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


def __dir__() -> list[str]:
  return __all__
