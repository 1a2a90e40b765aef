"""The exact reverse distribution: against the closed form of a single Gaussian, and the effect of large steps."""

import numpy as np
import pytest

from benchmarks import reverse_1d

GRID = np.linspace(-6, 6, 120_001)


@pytest.mark.parametrize('s, t', [(249, 250), (0, 250), (500, 1000)])
def test_single_gaussian(s, t):
  """x_0 ~ N(m, v): (x_s, x_t) is jointly Gaussian, so conditioning is linear regression."""
  m, v, x_t = 0.4, 0.3**2, -0.7
  ab_s, ab_t = reverse_1d.alpha_bar(s), reverse_1d.alpha_bar(t)
  variance_s, variance_t = ab_s * v + 1 - ab_s, ab_t * v + 1 - ab_t
  covariance = np.sqrt(ab_t / ab_s) * variance_s
  mean = np.sqrt(ab_s) * m + covariance / variance_t * (x_t - np.sqrt(ab_t) * m)
  std = np.sqrt(variance_s - covariance**2 / variance_t)
  data = reverse_1d.Mixture(np.ones(1), np.array([m]), np.sqrt([v]))
  density = reverse_1d.reverse_density(GRID, data, x_t, ab_s, ab_t)
  expected = np.exp(-((GRID - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)
  np.testing.assert_allclose(density, expected, atol=1e-6 * expected.max())
  assert reverse_1d.total_variation(GRID, density, reverse_1d.gaussian_fit(GRID, density)) < 1e-6


def test_larger_steps_are_less_gaussian():
  x_t = reverse_1d.conditioned_on(250)
  distances = []
  for s in (249, 240, 200, 150, 100, 50, 0):
    density = reverse_1d.reverse_density(
        GRID, reverse_1d.DATA, x_t, reverse_1d.alpha_bar(s), reverse_1d.alpha_bar(250))
    assert np.trapezoid(density, GRID) == pytest.approx(1, abs=1e-9)
    distances.append(reverse_1d.total_variation(GRID, density, reverse_1d.gaussian_fit(GRID, density)))
  assert all(b > a for a, b in zip(distances, distances[1:], strict=False))
  assert distances[0] < 1e-3 and distances[-1] > 0.5


def test_reverse_steps_compose():
  """Averaging q(x_s | x_t) over q(x_t) gives q(x_s)."""
  ab_s, ab_t = reverse_1d.alpha_bar(100), reverse_1d.alpha_bar(350)
  coarse = np.linspace(-4, 4, 801)
  weights = reverse_1d.DATA.diffused(ab_t).density(coarse) * (coarse[1] - coarse[0])
  averaged = sum(
      weight * reverse_1d.reverse_density(coarse, reverse_1d.DATA, x_t, ab_s, ab_t)
      for weight, x_t in zip(weights, coarse, strict=True))
  np.testing.assert_allclose(averaged, reverse_1d.DATA.diffused(ab_s).density(coarse), atol=1e-4)
