"""Metrics of samples: feature networks (in `features`), and metrics of their features and logits.

`frechet`, `kid`, `inception_score` and `precision_recall` take arrays of any network.
"""

from ddgan_jax.metrics import frechet, inception_score, kid, precision_recall
from ddgan_jax.metrics.features import inception, vgg, weights

__all__ = ['frechet', 'inception', 'inception_score', 'kid', 'precision_recall', 'vgg', 'weights']


def __dir__() -> list[str]:
  return __all__
