"""The Fréchet distance between Gaussians, and streaming means and covariances.

With features of the FID Inception network this is FID (Heusel et al. 2017); with others it is not called FID.
Everything is float64 on the host.
"""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.utils import checks

__all__ = ['Moments', 'frechet_distance']


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
  """|mean_a - mean_b|² + tr(cov_a) + tr(cov_b) - 2 tr((cov_a cov_b)^½) (Dowson and Landau 1982).

  The last trace is computed as the sum of the singular values of cov_a^½ cov_b^½, with roots of the symmetric factors.
  So no root of a nearly singular product is needed (with fewer samples than dimensions it would be), and nothing has to
  be added to the diagonal.

  Args:
    mean_a, mean_b: [D].
    cov_a, cov_b: [D, D] symmetric, positive semi-definite up to rounding.

  Returns:
    The squared distance, ≥ 0, as is usual for FID.

  Raises:
    UserError: the shapes differ, or a value is NaN or infinite.
  """
  mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
  for name, mean, cov in (('first', mean_a, cov_a), ('second', mean_b, cov_b)):
    if mean.shape != mean_a.shape or mean.ndim != 1 or cov.shape != 2 * mean.shape:
      raise UserError(f'the {name} statistics have a mean of shape {mean.shape} and a covariance of shape '
                      f'{cov.shape}; use {mean_a.shape} and {2 * mean_a.shape}')
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
      raise UserError(f'the {name} statistics contain NaN or infinity; use finite values')
  cross = np.linalg.svd(_root(cov_a) @ _root(cov_b).T, compute_uv=False).sum()
  squares = np.sum((mean_a - mean_b) ** 2)
  return max(float(squares + np.trace(cov_a) + np.trace(cov_b) - 2 * cross), 0.0)


def _root(cov: np.ndarray) -> np.ndarray:
  """R [rank, D] with R'R = cov; R_a R_b' has the singular values of cov_a^½ cov_b^½."""
  values, vectors = np.linalg.eigh((cov + cov.T) / 2)
  # An eigenvalue that is zero up to rounding has a root of about 1e-8, and a thousand of these add up.
  kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
  return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class Moments:
  """Streaming mean and covariance of batches of features; needs [D, D] numbers.

  Each batch is centred and then merged by the rule of Chan, Golub and LeVeque (1983), which is accurate even if the
  mean is much larger than the standard deviation.

  Attributes:
    count: number of rows so far.
    mean: [D] float64.
    scatter: [D, D] float64, the sum of outer products of deviations from `mean`.
  """

  def __init__(self, dim: int):
    self.count = 0
    self.mean = np.zeros(dim)
    self.scatter = np.zeros((dim, dim))

  def add(self, features: np.ndarray) -> None:
    """Adds features [B, D] of any float dtype; B may be 0. Raises ValueError or TypeError for other arrays."""
    checks.floats('features', features, 'B D', D=len(self.mean))
    features = np.asarray(features, np.float64)
    if len(features):
      mean = features.mean(axis=0)
      deviations = features - mean
      self._join(len(features), mean, deviations.T @ deviations)

  def merge(self, other: Moments) -> None:
    """Adds the rows of `other`."""
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
    """[D, D] float64, the unbiased estimate, like `np.cov`.

    Raises:
      UserError: fewer than two rows.
    """
    if self.count < 2:
      raise UserError(f'the number of samples is {self.count}; use at least 2')
    return self.scatter / (self.count - 1)


def __dir__() -> list[str]:
  return __all__
