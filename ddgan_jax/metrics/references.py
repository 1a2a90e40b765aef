"""The side of a comparison that --reference names: images, or published statistics."""

from __future__ import annotations

import os
import zipfile

from ddgan_jax.config import ConfigError
from ddgan_jax.metrics import image_sets, statistics
from ddgan_jax.metrics.image_sets import ImageSet
from ddgan_jax.metrics.statistics import Statistics


def read(path: str, num_channels: int) -> ImageSet | Statistics:
  """Reads statistics from a .npy, or an .npz without `images`, and images from everything else."""
  return statistics.read(path) if _holds_statistics(path) else image_sets.of_files(path, num_channels)


def as_jpeg(
    images: ImageSet | None, reference: ImageSet | Statistics | None
) -> tuple[ImageSet | None, ImageSet | None]:
  """Both sides after a JPEG of each image. Raises ConfigError for statistics, which cannot be treated alike."""
  if isinstance(reference, Statistics):
    raise ConfigError('--jpeg: needs images as reference, so that both sides are treated alike')
  return images and image_sets.as_jpeg(images), reference and image_sets.as_jpeg(reference)


def _holds_statistics(path: str) -> bool:
  if path.endswith('.npz') and os.path.isfile(path):
    try:
      with zipfile.ZipFile(path) as archive:
        return 'images.npy' not in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
      return True  # whose reader says what is wrong with it
  return path.endswith('.npy')
