"""Counts the modes of the 25 Gaussians in a set of points."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddgan_jax.config.checks import MIN_SAMPLES
from ddgan_jax.data import points as data_points
from ddgan_jax.metrics import gathering, image_sets
from ddgan_jax.metrics.image_sets import ImageSet
from ddgan_jax.utils import checks

__all__ = ['PointModes', 'count_point_modes', 'evaluate']


class PointModes(NamedTuple):
  """The result of `count_point_modes`.

  Attributes:
    found: number of modes, of 25, with at least one point.
    in_mode: fraction of points in a mode, 0 to 1.
    kl: KL divergence in nats from the histogram of nearest modes to uniform, 0 to log(25) = 3.22; about 24 / (2n) for
      samples of the true distribution.
  """

  found: int
  in_mode: float
  kl: float


def count_point_modes(points: np.ndarray) -> PointModes:
  """Counts modes by the usual criterion (Srivastava et al., 2017, "VEEGAN", section 4.1).

  A point is in its nearest mode if it is within three standard deviations of the centre (98.9% of true points are); a
  mode is found if it has at least one point. The KL divergence uses the nearest modes of all points.

  Args:
    points: [n, 2] or [n, 1, 1, 2], n ≥ 1, finite.

  Raises:
    ValueError, TypeError: the points have another shape or dtype, or are not finite.
  """
  checks.numbers('points', points, 'n xy' if np.ndim(points) == 2 else 'n H W xy', H=1, W=1, xy=2)
  checks.finite('points', points)
  points = np.asarray(points, np.float64).reshape(-1, 2)
  if not len(points):
    raise ValueError('points is empty; use at least 1')
  distances = np.linalg.norm(points[:, None] - data_points.CENTRES, axis=2)
  nearest = distances.argmin(axis=1)
  is_in = distances.min(axis=1) <= 3 * data_points.STANDARD_DEVIATION
  share = np.bincount(nearest, minlength=len(data_points.CENTRES)) / len(points)
  kl = float(np.sum(share[share > 0] * np.log(share[share > 0] * len(data_points.CENTRES))))
  return PointModes(len(np.unique(nearest[is_in])), float(is_in.mean()), kl)


def evaluate(points: ImageSet, num: int, batch_size: int, mesh: Any) -> dict[str, Any]:
  """Reports the modes of the 25 Gaussians in a set of points, like `Evaluator.evaluate` but without digests."""
  batch_size = -(-batch_size // mesh.size) * mesh.size
  points = image_sets.subset(points, num)
  num = num if points.size is None else points.size
  blocks = [points.rows(first, batch_size) for first in range(0, num, batch_size)]
  gathering.wait()
  found = count_point_modes(gathering.gather_rows(blocks)[:num])
  values = {'modes': found.found, 'mode_kl': found.kl, 'in_mode': found.in_mode}
  metrics = {name: {'value': value, 'features': 'the points themselves'} for name, value in values.items()}
  metrics['modes']['out_of'] = len(data_points.CENTRES)
  return {'images': points.name, 'n': num, 'reference': None, 'n_reference': None, 'biased': num < MIN_SAMPLES,
          'metrics': metrics}


def __dir__() -> list[str]:
  return __all__
