"""Authenticity against its definition in loops, and of copies."""

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics.memorization import authenticity

RNG = np.random.default_rng(0)
TRAIN, FAKE = RNG.standard_normal((300, 5)), RNG.standard_normal((217, 5)) * 0.8


def test_against_the_definition_in_loops():
  found = authenticity(np.float32(TRAIN), np.float32(FAKE))
  authentic = 0
  for j, g in enumerate(FAKE):
    to_train = [np.linalg.norm(g - x) for x in TRAIN]
    i = int(np.argmin(to_train))
    own = min(np.linalg.norm(TRAIN[i] - x) for k, x in enumerate(TRAIN) if k != i)
    authentic += to_train[i] > own
    assert found.nearest[j] == i
    np.testing.assert_allclose(found.ratio[j], to_train[i] / own, rtol=1e-4)
  assert found.fraction == authentic / len(FAKE) and 0.2 < found.fraction < 0.8


def test_copies_are_not_authentic():
  """Far from the origin, where rounding would hide a copy; twins have a distance of 0 to each other."""
  far = np.concatenate([TRAIN, TRAIN[:1]]) + 1000
  found = authenticity(np.float32(far), np.float32(far[::-1]))
  assert found.fraction == 0 and (found.ratio == 0).all()
  np.testing.assert_array_equal(found.nearest[1:-1], np.arange(300)[:0:-1])
  assert authenticity(far, far[:1] + 0.1).ratio == np.inf
  near = authenticity(TRAIN, TRAIN + 1e-3)
  assert near.fraction == 0 and 0 < near.ratio.max() < 0.1


def test_invalid_features_are_refused():
  with pytest.raises(ValueError, match=r'fake is float64 \[217, 4\]; use numbers \[number, dimension=5\]'):
    authenticity(TRAIN, FAKE[:, :4])
  with pytest.raises(UserError, match='train has 1 samples; use at least 2'):
    authenticity(TRAIN[:1], FAKE)
