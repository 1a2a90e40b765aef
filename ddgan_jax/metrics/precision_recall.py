"""Improved precision and recall, density and coverage: metrics that separate quality from coverage.

All approximate the support of a distribution by the union of balls around its samples, each with the distance to the
k-th nearest neighbour as radius.
"""

from __future__ import annotations

import numpy as np

from ddgan_jax.metrics import distances

__all__ = ['density_coverage', 'precision_recall']


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
  """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

  Precision is the fraction of fakes in the closed ball of at least one real, recall the fraction of reals in the closed
  ball of at least one fake. The radius is the distance to the k-th nearest other sample of the same set.

  Args:
    real: [N, D] features; published values use `vgg.features` of N = M = 50,000 or 10,000 images.
    fake: [M, D] features.
    k: index of the neighbour, ≥ 1.

  Returns:
    Precision and recall, both in [0, 1].

  Raises:
    UserError: a set has at most k samples.
    ValueError, TypeError: the dimensions differ, or a value is not finite.
  """
  real, fake = distances.centred(real, fake, k, k)
  real_radii, fake_radii = distances.squared_radii(real, k), distances.squared_radii(fake, k)
  precision = np.mean(distances.count_inside(fake, real, real_radii[None]) > 0)
  recall = np.mean(distances.count_inside(real, fake, fake_radii[None]) > 0)
  return float(precision), float(recall)


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
  """Density and coverage (Naeem et al. 2020, equations 4 and 5), which are robust to outliers.

  Density is the number of reals' balls that contain a fake, divided by k and averaged over the fakes. Coverage is the
  fraction of reals with a fake in their ball.

  Args:
    real: [N, D] features.
    fake: [M, D] features.
    k: index of the neighbour whose distance is the radius, ≥ 1; balls are closed.

  Returns:
    Density, ≥ 0 and about 1 for equal distributions, and coverage, in [0, 1].

  Raises:
    See `precision_recall`; one fake is enough.
  """
  real, fake = distances.centred(real, fake, k, 0)
  radii = distances.squared_radii(real, k)
  density = distances.count_inside(fake, real, radii[None]).sum() / (k * len(fake))
  coverage = np.mean(distances.count_inside(real, fake, radii[:, None]) > 0)
  return float(density), float(coverage)


def __dir__() -> list[str]:
  return __all__
