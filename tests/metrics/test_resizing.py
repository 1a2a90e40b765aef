"""Bicubic resizing against Pillow."""

import numpy as np
import pytest
from PIL import Image

from ddgan_jax.metrics.features import resizing


def images(size):
  """Noise, and black and white, which overshoot the most."""
  noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 1), np.uint8)
  noise[1] = np.where(noise[1] > 127, 255, 0)
  return noise


def pillow(array, size):
  return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))[..., None]


@pytest.mark.parametrize('size', [28, 32, 64, 224, 256, 300, 1024])
def test_pillow(size):
  for target in (224, 299):
    x = images(size)
    np.testing.assert_array_equal(
        resizing.bicubic_uint8(x, target), np.stack([pillow(image[..., 0], target) for image in x]))
    expected = np.stack([pillow(image[..., 0].astype(np.float32), target) for image in x])
    assert size >= target or expected.min() < -1 and expected.max() > 256
    np.testing.assert_allclose(resizing.bicubic(x, target), expected.clip(0, 255), rtol=0, atol=1e-4)
