"""Authenticity: whether samples are copies of training images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddgan_jax.metrics import distances

__all__ = ['Authenticity', 'authenticity']


class Authenticity(NamedTuple):
  """The result of `authenticity`.

  Attributes:
    fraction: share of authentic samples, 0 to 1. Compare it with that of held-out images: a smaller share of the
      samples means that the model memorises.
    nearest: [M] int32, the index of the training image nearest to each sample.
    ratio: [M] float32, the distance of the sample to that image divided by the distance of that image to its own
      nearest other training image; below 1 for samples that are not authentic, 0 for copies.
  """

  fraction: float
  nearest: np.ndarray
  ratio: np.ndarray


def authenticity(train: np.ndarray, fake: np.ndarray) -> Authenticity:
  """The share of samples that are no copies (Alaa et al., 2022).

  A sample is authentic if it is farther from its nearest training image than that image is from its own nearest
  neighbour.

  Args:
    train: [N, D] features of all training images, N ≥ 2.
    fake: [M, D] features of samples, or of held-out images for comparison.

  Raises:
    UserError: `train` has fewer than two samples, `fake` none.
    ValueError, TypeError: the dimensions differ, or a value is not finite.
  """
  train, fake = distances.centred(train, fake, 1, 0, 'train')
  nearest, squared = distances.nearest(fake, train)
  radii = distances.squared_radii(train, 1)[nearest]
  with np.errstate(divide='ignore', invalid='ignore'):  # the training image may occur twice
    ratio = np.sqrt(np.where(squared == 0, 0, squared / radii))
  return Authenticity(float(np.mean(squared > radii)), nearest, ratio)


def __dir__() -> list[str]:
  return __all__
