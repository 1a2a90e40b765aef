"""The Fréchet distance between Gaussians, and the means and covariances that it needs, in one pass over the features.

With features of the Inception network this is FID (Heusel et al. 2017); with others it is not, and is never called so.
Everything is float64 on the host.
"""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.utils import checks

__all__ = ['Moments', 'frechet_distance']


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
  """|mean_a - mean_b|² + tr(cov_a) + tr(cov_b) - 2 tr((cov_a cov_b)^½) (Dowson and Landau 1982).

  The last trace is the sum of the singular values of cov_a^½ cov_b^½, a product whose factors come from eigenvalues of
  symmetric matrices. So there is no root of a matrix that is nearly singular, which fewer samples than dimensions give,
  and nothing has to be added to the diagonal.

  Args:
    mean_a, mean_b: [D].
    cov_a, cov_b: [D, D] symmetric, positive semi-definite up to rounding.

  Returns:
    The distance, ≥ 0; as with all FIDs this is the squared one.

  Raises:
    UserError: the shapes do not agree, or a value is not finite.
  """
  mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
  for name, mean, cov in (('first', mean_a, cov_a), ('second', mean_b, cov_b)):
    if mean.shape != mean_a.shape or mean.ndim != 1 or cov.shape != 2 * mean.shape:
      raise UserError(f'the {name} statistics: found a mean of shape {mean.shape} and a covariance of shape '
                      f'{cov.shape}, must be {mean_a.shape} and {2 * mean_a.shape}')
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
      raise UserError(f'the {name} statistics: found a value that is not finite, so that there is no distance')
  cross = np.linalg.svd(_root(cov_a) @ _root(cov_b).T, compute_uv=False).sum()
  squares = np.sum((mean_a - mean_b) ** 2)
  return max(float(squares + np.trace(cov_a) + np.trace(cov_b) - 2 * cross), 0.0)


def _root(cov: np.ndarray) -> np.ndarray:
  """R [rank, D] with R'R = cov: R_a R_b' has the singular values of the product of the symmetric roots."""
  values, vectors = np.linalg.eigh((cov + cov.T) / 2)
  # What is left of a zero after rounding has a root of 1e-8, and a thousand of them add up.
  kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
  return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class Moments:
  """Mean and covariance of features that come in batches; only [D, D] numbers are kept.

  Each batch is centred before it is multiplied out, and joined with what was there by the rule of Chan, Golub and
  LeVeque (1983): nothing is lost where the mean is much larger than the deviation.

  Attributes:
    count: rows so far.
    mean: [D] float64.
    scatter: [D, D] float64, the sum of outer products of deviations from `mean`.
  """

  def __init__(self, dim: int):
    self.count = 0
    self.mean = np.zeros(dim)
    self.scatter = np.zeros((dim, dim))

  def add(self, features: np.ndarray) -> None:
    """Takes in [B, D] features of any float dtype; B may be 0. Raises ValueError or TypeError for others."""
    checks.floats('features', features, 'B D', D=len(self.mean))
    features = np.asarray(features, np.float64)
    if len(features):
      mean = features.mean(axis=0)
      deviations = features - mean
      self._join(len(features), mean, deviations.T @ deviations)

  def merge(self, other: Moments) -> None:
    """Takes in what `other` has seen."""
    if other.count:
      self._join(other.count, other.mean, other.scatter)

  def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
    total = self.count + count
    difference = mean - self.mean
    self.scatter += scatter
    self.scatter += np.outer(difference, difference * (self.count * count / total))
    self.mean = self.mean + difference * (count / total)
    self.count = total

  def covariance(self) -> np.ndarray:
    """[D, D] float64, the unbiased estimate as `np.cov` gives it.

    Raises:
      UserError: fewer than two rows.
    """
    if self.count < 2:
      raise UserError(f'a covariance needs 2 samples or more, found {self.count}')
    return self.scatter / (self.count - 1)


def __dir__() -> list[str]:
  return __all__
