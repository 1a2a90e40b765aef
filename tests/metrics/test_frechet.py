"""The Fréchet distance against scipy and closed forms; moments against numpy."""

import numpy as np
import pytest
import scipy.linalg

from ddgan_jax.config import UserError
from ddgan_jax.metrics import frechet
from tests.support import GOLDEN


def statistics(features):
  moments = frechet.Moments(features.shape[1])
  moments.add(features)
  return moments.mean, moments.covariance()


@pytest.mark.parametrize('case, tolerance', [('well_conditioned', 1e-6), ('singular', 1e-2)])
def test_golden(case, tolerance):
  arrays = np.load(GOLDEN / 'metrics.npz')
  found = frechet.frechet_distance(*statistics(arrays[f'{case}/a']), *statistics(arrays[f'{case}/b']))
  np.testing.assert_allclose(found, arrays[f'{case}/fid'], rtol=tolerance)


@pytest.mark.filterwarnings('ignore::scipy.linalg.LinAlgWarning')
@pytest.mark.parametrize('seed', range(20))
def test_against_scipy(seed):
  """Odd seeds have rank-deficient covariances, for which scipy's root of the product keeps 7 digits."""
  rng = np.random.default_rng(seed)
  dim = int(rng.integers(2, 40))
  counts = rng.integers(2, dim + 1, 2) if seed % 2 else rng.integers(dim + 2, 5 * dim, 2)
  means, covs = [], []
  for count in counts:
    features = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + 3 * rng.standard_normal(dim)
    means.append(features.mean(axis=0))
    covs.append(np.cov(features, rowvar=False))
  root = np.trace(scipy.linalg.sqrtm(covs[0] @ covs[1]).real)
  expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1]) - 2 * root
  found = frechet.frechet_distance(means[0], covs[0], means[1], covs[1])
  np.testing.assert_allclose(found, expected, rtol=1e-6 if seed % 2 else 1e-9)


def test_covariances_that_commute_have_a_closed_form():
  """Σ (√a - √b)² in a common random basis, with half of the eigenvalues 0 on either side."""
  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.standard_normal((60, 60)))
  a, b = rng.exponential(size=(2, 60)) ** 4
  a[:30], b[15:45] = 0, 0
  cov = lambda values: basis * values @ basis.T
  found = frechet.frechet_distance(np.zeros(60), cov(a), np.zeros(60), cov(b))
  np.testing.assert_allclose(found, np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rtol=1e-10)


def test_degenerate_statistics():
  mean, cov = statistics(np.random.default_rng(0).standard_normal((9, 20)))
  zeros = np.zeros((20, 20))
  assert frechet.frechet_distance(mean, cov, mean, cov) < 1e-12
  assert frechet.frechet_distance(mean, zeros, mean, zeros) == 0
  np.testing.assert_allclose(frechet.frechet_distance(mean + 2, cov, mean, zeros), 80 + np.trace(cov), rtol=1e-12)


def test_mismatched_statistics_are_refused():
  mean, cov = np.zeros(3), np.eye(3)
  with pytest.raises(UserError, match=r'second statistics have a mean of shape \(4,\) .* use \(3,\) and '):
    frechet.frechet_distance(mean, cov, np.zeros(4), np.eye(4))
  with pytest.raises(UserError, match='first statistics contain NaN or infinity'):
    frechet.frechet_distance(mean, cov * np.nan, mean, cov)


FEATURES = np.random.default_rng(1).gamma(2.0, size=(500, 30)).astype(np.float32) * np.float32(1e-2) + np.float32(1e2)


def in_batches(size):
  moments = frechet.Moments(30)
  for i in range(0, 500, size):
    moments.add(FEATURES[i:i + size])
  return moments


@pytest.mark.parametrize('size', [1, 7, 64, 500])
def test_moments_against_numpy(size):
  """The mean is ten thousand standard deviations, so a plain sum of squares would keep only 8 digits."""
  moments = in_batches(size)
  double = FEATURES.astype(np.float64)
  assert moments.count == 500
  np.testing.assert_allclose(moments.mean, double.mean(axis=0), rtol=1e-14)
  expected = np.cov(double, rowvar=False)
  np.testing.assert_allclose(moments.covariance(), expected, rtol=1e-10, atol=1e-10 * expected.max())


def test_the_distance_does_not_depend_on_batch_sizes_or_parts():
  other = np.ones(30) * 1e2, np.eye(30) * 1e-4
  distance = lambda moments: frechet.frechet_distance(moments.mean, moments.covariance(), *other)
  merged = frechet.Moments(30)
  for part in np.split(FEATURES, [0, 13, 14, 450]):  # including an empty one and one of a single row
    moments = frechet.Moments(30)
    moments.add(part)
    merged.merge(moments)
  found = [distance(in_batches(7)), distance(in_batches(64)), distance(merged)]
  np.testing.assert_allclose(found, distance(in_batches(500)), rtol=1e-9)


def test_one_sample_has_no_covariance():
  moments = frechet.Moments(30)
  moments.add(FEATURES[:1])
  with pytest.raises(UserError, match='number of samples is 1; use at least 2'):
    moments.covariance()
