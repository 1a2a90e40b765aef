"""MIND against its formula in loops, known distances, and wrong input."""

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics.mind import monge_distance

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.standard_normal((40, 6)), RNG.standard_normal((40, 6)) * 1.5 + 0.3


def test_against_the_formula_in_loops():
  """With the documented directions: rows of a NumPy generator with the seed (seed, 1), normalised."""
  directions = np.random.default_rng((3, 1)).standard_normal((70, 6))
  total = 0.0
  for u in directions:
    u = u / np.sqrt((u**2).sum())
    total += sum((a - b) ** 2 for a, b in zip(sorted(REAL @ u), sorted(FAKE @ u))) / 40
  np.testing.assert_allclose(monge_distance(REAL, FAKE, 70, seed=3), 3 * 6 * total / 70, rtol=1e-5)


def test_known_distances():
  """A set and its translation differ by 3 |shift|² in expectation, equal sets in another order by 0."""
  shift = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 1.0])
  found = monge_distance(REAL, REAL[::-1] + shift, 20_000)
  np.testing.assert_allclose(found, 3 * (shift**2).sum(), rtol=0.05)
  assert monge_distance(REAL, REAL[RNG.permutation(40)]) < 1e-9
  # Features far from the origin keep their digits.
  far = 3000 * np.ones(6)
  np.testing.assert_allclose(
      monge_distance(np.float32(REAL + far), np.float32(FAKE + far)), monge_distance(REAL, FAKE), rtol=1e-3)


def test_the_larger_set_is_reduced():
  """To a random subset, a function of the seed."""
  many = np.concatenate([REAL, FAKE + 5])
  values = {seed: monge_distance(many, FAKE, 50, seed) for seed in (0, 1)}
  assert values[0] != values[1] and values[0] == monge_distance(many, FAKE, 50, 0)
  # The subset is of different rows.
  assert monge_distance(np.repeat(REAL[:1], 90, axis=0), REAL[:2], 50) == monge_distance(REAL[[0, 0]], REAL[:2], 50)


def test_invalid_features_are_refused():
  with pytest.raises(ValueError, match=r'fake is float64 \[40, 5\]; use numbers \[number, dimension=6\]'):
    monge_distance(REAL, FAKE[:, :5])
  with pytest.raises(UserError, match='fake has 1 samples; use at least 2'):
    monge_distance(REAL, FAKE[:1])
  with pytest.raises(ValueError, match='fake'):
    monge_distance(REAL, np.where(FAKE > 2, np.nan, FAKE))
