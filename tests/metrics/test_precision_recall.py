"""Precision, recall, density and coverage against brute force in float64."""

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics import distances
from ddgan_jax.metrics import precision_recall as pr
from tests.support import GOLDEN


def brute_force(real, fake, k):
  """The four metrics from all distances; balls include their edge, and no sample is its own neighbour."""
  real, fake = real.astype(np.float64), fake.astype(np.float64)
  distances = lambda a, b: np.array([((b - row) ** 2).sum(axis=1) for row in a])
  radii = lambda a: np.sort(distances(a, a) + np.diag(np.full(len(a), np.inf)), axis=1)[:, k - 1]
  between = distances(fake, real)
  in_real, in_fake = between <= radii(real), between <= radii(fake)[:, None]
  density = in_real.sum() / (k * len(fake))
  return in_real.any(axis=1).mean(), in_fake.any(axis=0).mean(), density, in_real.any(axis=0).mean()


def all_metrics(real, fake, k):
  return *pr.precision_recall(real, fake, k), *pr.density_coverage(real, fake, k)


def test_golden():
  arrays = np.load(GOLDEN / 'metrics.npz')
  expected = arrays['pr/precision'], arrays['pr/recall']
  np.testing.assert_allclose(pr.precision_recall(arrays['pr/real'], arrays['pr/fake']), expected, rtol=1e-12)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 64 rows, the last one partial, instead of a single one of 1024."""
  monkeypatch.setattr(distances, '_BLOCK_NUMBERS', 64 * 300)


@pytest.mark.parametrize('k', [1, 5])
def test_against_brute_force(small_blocks, k):
  rng = np.random.default_rng(k)
  real, fake = rng.standard_normal((300, 8)), rng.standard_normal((250, 8)) * 0.9 + 0.3
  expected = brute_force(real, fake, k)
  assert min(expected) > 0.1
  # One sample is 0.003 of a fraction; one of 75,000 pairs, possibly within 1e-6 of an edge, is 0.001 of the density.
  np.testing.assert_allclose(all_metrics(real, fake, k), expected, rtol=2e-3)


def test_distances_far_smaller_than_the_features(small_blocks):
  """Clusters 0.1 wide and 60 apart, all far from 0: a product of float32 numbers is wrong by a tenth of a radius."""
  rng = np.random.default_rng(0)
  centres = 300 + np.where(rng.integers(0, 2, (2, 300, 1)), 30, -30)
  real, fake = (centres + 0.1 * rng.standard_normal((2, 300, 8))).astype(np.float32)
  np.testing.assert_allclose(all_metrics(real, fake, 3), brute_force(real, fake, 3), rtol=2e-3)


def test_samples_on_the_edge_are_inside():
  """Fakes equal to the reals, where each ball ends at a fake; and fakes that all equal one real."""
  real = np.random.default_rng(0).standard_normal((100, 40)).astype(np.float32) + 50
  np.testing.assert_allclose(all_metrics(real, real, 5), (1, 1, 6 / 5, 1))
  collapsed = np.repeat(real[:1], 30, axis=0)
  np.testing.assert_allclose(all_metrics(real, collapsed, 5), brute_force(real, collapsed, 5))
  assert pr.precision_recall(real, collapsed)[1] == 0.01  # the one real


def test_density_and_coverage_of_a_perfect_generator():
  """Naeem et al. 2020, equation 9: the expected coverage for N = M is about 1 - 2^-k."""
  real, fake = np.random.default_rng(0).standard_normal((2, 1500, 16))
  density, coverage = pr.density_coverage(real, fake)
  assert abs(density - 1) < 0.05 and abs(coverage - (1 - 2**-5)) < 0.015


def test_invalid_features_are_refused():
  x = np.zeros((5, 2))
  with pytest.raises(ValueError, match=r'fake is float64 \[5, 3\]; use .*dimension=2'):
    pr.precision_recall(x, np.zeros((5, 3)))
  with pytest.raises(UserError, match='real has 3 samples; use at least 4'):
    pr.precision_recall(x[:3], x)
  with pytest.raises(ValueError, match='fake contains NaN or infinity'):
    pr.density_coverage(np.zeros((6, 2)), x + np.inf)
