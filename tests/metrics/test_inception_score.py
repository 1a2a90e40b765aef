"""The Inception score against the original's number and closed forms."""

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics.inception_score import inception_score
from tests.support import GOLDEN


def test_golden():
  arrays = np.load(GOLDEN / 'metrics.npz')
  mean, std = inception_score(arrays['is/logits'], shuffle=False)
  np.testing.assert_allclose([mean, std], [arrays['is/mean'], arrays['is/std']], rtol=1e-6)


def test_scores_of_perfect_and_constant_predictions():
  certain = 1e4 * np.eye(7)[np.arange(70) % 7]
  np.testing.assert_allclose(inception_score(certain, shuffle=False), (7, 0), atol=1e-9)  # each part is balanced
  np.testing.assert_allclose(inception_score(np.tile(certain[:1], (20, 1))), (1, 0), atol=1e-12)
  np.testing.assert_allclose(inception_score(np.zeros((20, 5)) + 300), (1, 0), atol=1e-12)


def test_every_sample_counts_for_any_number_of_splits():
  logits = 1e4 * np.eye(2)[[0, 0, 0, 0, 1]]
  mean, std = inception_score(logits, splits=2, shuffle=False)  # splits of 3 and 2 samples
  np.testing.assert_allclose([mean, std], [1.5, 0.5])
  with pytest.raises(UserError, match='splits is 6; use 1 … 5, the number of samples'):
    inception_score(logits, splits=6)


def test_sorted_samples_score_like_shuffled_ones():
  """Ten classes in order: without shuffling, each part would hold one class and score 1."""
  logits = 1e4 * np.eye(10)[np.arange(2000) // 200]
  mean, std = inception_score(logits)
  assert mean > 9.5 and std < 0.2
  assert inception_score(logits, splits=1) == inception_score(logits, splits=1, shuffle=False) == (pytest.approx(10), 0)
