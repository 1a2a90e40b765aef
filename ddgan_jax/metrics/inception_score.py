"""The Inception score (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import UserError

_NUM_CLASSES = 1000  # ImageNet's; the network's last 8 outputs were never trained


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
  """exp(E KL(p(y | x) || p(y))) in each of `splits` consecutive parts, whose p(y) is the part's own.

  Args:
    logits: [N, 1008] of `inception.features`, of which the first 1000 count, or [N, K ≤ 1000] of another classifier.
    splits: how many parts; they differ by at most one in size. 10 is usual; with 1 the score is a little higher.

  Returns:
    Mean and standard deviation (over the parts, dividing by their number). From 1 to the number of classes.

  Raises:
    UserError: fewer samples than parts.
  """
  logits = np.asarray(logits, np.float64)[:, :_NUM_CLASSES]
  if not 1 <= splits <= len(logits):
    raise UserError(f'the Inception score of {len(logits)} samples: found {splits} splits, must be from 1 to the '
                    'number of samples')
  logits = logits - logits.max(axis=1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  scores = []
  for part in np.array_split(log_p, splits):
    p = np.exp(part)
    # A class that no sample of the part can have adds 0 · log 0 = 0.
    log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    scores.append(np.exp((p * (part - log_marginal)).sum(axis=1).mean()))
  return float(np.mean(scores)), float(np.std(scores))
