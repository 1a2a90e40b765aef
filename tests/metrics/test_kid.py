"""KID against its U-statistic in loops, and as a function of its seed."""

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics.kid import kernel_distance

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.standard_normal((12, 5)), RNG.standard_normal((12, 5)) * 1.5 + 0.3


def u_statistic(x, y):
  kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3
  n = len(x)
  total = 0.0
  for i in range(n):
    for j in range(n):
      if i != j:
        total += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (n * (n - 1))
      total -= 2 * kernel(x[i], y[j]) / n**2
  return total


def test_against_the_u_statistic_in_loops():
  mean, std = kernel_distance(REAL.astype(np.float32), FAKE.astype(np.float32), num_subsets=3)  # each is the whole set
  np.testing.assert_allclose(mean, u_statistic(REAL, FAKE), rtol=1e-6)
  assert std < 1e-12


def test_subsets_are_unbiased_and_a_function_of_the_seed():
  """The mean over all pairs of subsets is the whole sets' U-statistic; 4,000 draws are within 4 standard errors."""
  mean, std = kernel_distance(REAL, FAKE, num_subsets=4000, subset_size=6)
  assert abs(mean - u_statistic(REAL, FAKE)) < 4 * std / np.sqrt(4000) and std > 0.1
  score = lambda seed: kernel_distance(REAL, FAKE, num_subsets=5, subset_size=6, seed=seed)
  assert score(1) == score(1) != score(2)


def test_invalid_features_are_refused():
  with pytest.raises(ValueError, match=r'fake is float64 \[12, 4\]; use numbers \[number, dimension=5\]'):
    kernel_distance(REAL, FAKE[:, :4])
  with pytest.raises(UserError, match='fake has 1 samples; use at least 2'):
    kernel_distance(REAL, FAKE[:1])
