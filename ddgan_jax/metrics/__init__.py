"""Metrics of samples: feature networks (in `features`), and metrics of their features and logits.

`frechet`, `kid`, `mind`, `inception_score`, `precision_recall` and `memorization` take arrays of any network.
"""

from ddgan_jax.metrics import frechet, inception_score, kid, memorization, mind, precision_recall
from ddgan_jax.metrics.features import dinov2, inception, vgg, weights

__all__ = [
    'dinov2', 'frechet', 'inception', 'inception_score', 'kid', 'memorization', 'mind', 'precision_recall', 'vgg',
    'weights']


def __dir__() -> list[str]:
  return __all__
