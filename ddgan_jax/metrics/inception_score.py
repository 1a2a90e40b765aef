"""The Inception score (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.data import pipeline
from ddgan_jax.utils import checks

__all__ = ['check_splits', 'inception_score']

# Outputs 0 … 999 of the network's 1,008 count, as in the original. Output 0 is a background class and 1 … 1000 are
# ImageNet's, so the background class is kept and ImageNet's last class is dropped, with 7 outputs that were never
# trained.
_NUM_CLASSES = 1000


def inception_score(logits: np.ndarray, splits: int = 10, shuffle: bool = True) -> tuple[float, float]:
  """exp(E KL(p(y | x) || p(y))) in each of `splits` parts, whose p(y) is the part's own.

  Args:
    logits: [N, 1008] of `inception.features`, of which the first 1000 count, or [N, K ≤ 1000] of another classifier.
    splits: how many parts; they differ by at most one in size. 10 is usual; with 1, as in the original's published
      figure, the score is a little higher.
    shuffle: split a fixed permutation of the samples; otherwise the parts are consecutive, and of samples sorted by
      class each part would hold few classes.

  Returns:
    Mean and standard deviation (over the parts, dividing by their number). From 1 to the number of classes.

  Raises:
    UserError: fewer samples than parts.
    ValueError, TypeError: the logits are not as above or not finite.
  """
  checks.numbers('logits', logits, 'number classes')
  checks.finite('logits', logits)
  logits = np.asarray(logits, np.float64)[:, :_NUM_CLASSES]
  check_splits(splits, len(logits))
  logits = logits - logits.max(axis=1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  if shuffle and splits > 1:
    log_p = log_p[pipeline.permutation(0, pipeline.SPLITS, 0, len(log_p))]
  scores = []
  for part in np.array_split(log_p, splits):
    p = np.exp(part)
    # A class that no sample of the part can have adds 0 · log 0 = 0.
    log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    scores.append(np.exp((p * (part - log_marginal)).sum(axis=1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


def check_splits(splits: int, num_samples: int) -> None:
  """Raises UserError unless every part has a sample."""
  if not 1 <= splits <= num_samples:
    raise UserError(f'splits of the Inception score: found {splits}, must be from 1 to the number of samples, '
                    f'{num_samples:,}')


def __dir__() -> list[str]:
  return __all__
