"""The Inception score (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.data import pipeline
from ddgan_jax.utils import checks

__all__ = ['check_splits', 'inception_score']

# As in the original score, outputs 0 … 999 of the network's 1,008 are used. Output 0 is a background class and 1 … 1000
# are ImageNet's, so this keeps the background class and drops ImageNet's last class and 7 untrained outputs.
_NUM_CLASSES = 1000


def inception_score(logits: np.ndarray, splits: int = 10, shuffle: bool = True) -> tuple[float, float]:
  """exp(E KL(p(y | x) || p(y))) of each of `splits` splits, with p(y) of the split.

  Args:
    logits: [N, 1008] of `inception.features`, of which the first 1000 are used, or [N, K ≤ 1000] of another classifier.
    splits: number of splits, whose sizes differ by at most one. 10 is usual; 1, as in the original's published value,
      gives a slightly higher score.
    shuffle: split a fixed permutation of the samples; otherwise the splits are consecutive, and have few classes each
      if the samples are sorted by class.

  Returns:
    Mean and (population) standard deviation over the splits; the mean is in 1 … number of classes.

  Raises:
    UserError: there are fewer samples than splits.
    ValueError, TypeError: the logits have another shape or dtype, or are not finite.
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
    # A class without probability in this split adds 0 · log 0 = 0.
    log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    scores.append(np.exp((p * (part - log_marginal)).sum(axis=1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


def check_splits(splits: int, num_samples: int) -> None:
  """Raises UserError unless every split has a sample."""
  if not 1 <= splits <= num_samples:
    raise UserError(f'splits is {splits}; use 1 … {num_samples:,}, the number of samples, for the Inception score')


def __dir__() -> list[str]:
  return __all__
