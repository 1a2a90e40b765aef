"""The FID Inception network against PyTorch's numbers, with random weights."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

from ddgan_jax.config import UserError
from ddgan_jax.metrics.features import inception, weights
from ddgan_jax.parallel import compilation
from tests.support import golden, relative_error


def weight(name, shape):
  """A weight of the golden file: a function of the tensor's name that preserves the scale of the activations."""
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  if len(shape) > 1:
    return x * np.float32(np.sqrt(2 / np.prod(shape[1:])))
  if name.endswith('running_var'):
    return 1 + np.float32(0.1) * np.abs(x)
  return np.float32(0.1) * x + name.endswith('bn.weight')


@pytest.fixture(scope='module')
def arrays():
  return golden('inception_fid.npz')[0]


@pytest.fixture(scope='module')
def state_dict(arrays):
  rows = (str(row).split('|') for row in arrays['param_names'])
  return {name: weight(name, json.loads(shape)) for name, shape in rows}


@pytest.fixture(scope='module')
def features(state_dict):
  params = inception.params_from_state_dict(state_dict)
  compiled = compilation.jit(inception.features)
  return lambda images: compiled(params, images)


@pytest.mark.parametrize('case', ['cifar', 'wide', 'native'])
def test_golden(arrays, features, case):
  pool3, logits = features(arrays[f'{case}/images_uint8_nhwc'])
  assert pool3.dtype == logits.dtype == np.float32
  assert relative_error(pool3, arrays[f'{case}/pool3']) < 1e-5
  assert relative_error(logits, arrays[f'{case}/logits']) < 1e-5


def test_clean_features_are_those_of_pillows_images(arrays, state_dict):
  """clean-fid's input: each channel as a float image, resized by Pillow, clipped, and (x - 128) / 128."""
  images = arrays['cifar/images_uint8_nhwc'][:2]
  resized = np.stack([[
      np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
      for c in range(3)] for image in images]).transpose(0, 2, 3, 1)
  params = inception.params_from_state_dict(state_dict)
  expected = compilation.jit(inception._network)(params, (resized.clip(0, 255) - 128) / 128)[0]
  found = compilation.jit(inception.clean_features)(params, images)
  assert found.shape == (2, 2048) and relative_error(found, expected) < 1e-5
  plain = compilation.jit(inception.features)(params, images)[0]
  assert relative_error(found, plain) > 1e-3


def test_grey_images_are_repeated_to_three_channels(arrays):
  grey = arrays['cifar/images_uint8_nhwc'][..., :1]
  np.testing.assert_array_equal(inception.resize(grey, 50), inception.resize(np.repeat(grey, 3, axis=-1), 50))


@pytest.mark.parametrize('images, found', [
    (np.zeros((2, 32, 32, 3), np.float32), 'float32'),
    (np.zeros((32, 32, 3), np.uint8), r'uint8 \(32, 32, 3\)'),
    (np.zeros((2, 3, 32, 32), np.uint8), r'uint8 \(2, 3, 32, 32\)'),
])
def test_images_of_another_dtype_or_shape_are_refused(images, found):
  with pytest.raises(UserError, match=f'images is {found}.*; use uint8'):
    inception.features({}, images)


def test_weights_of_other_networks_are_refused(state_dict):
  torchvision_weights = {**state_dict, 'fc.weight': np.zeros((1000, 2048), np.float32)}
  with pytest.raises(weights.WeightsError, match=r'fc.weight has shape \(1000, 2048\); use \(1008, 2048\)'):
    inception.params_from_state_dict(torchvision_weights)
  del torchvision_weights['Mixed_7c.branch_pool.bn.bias']
  with pytest.raises(weights.WeightsError, match='Mixed_7c.branch_pool.bn.bias is missing'):
    inception.params_from_state_dict(torchvision_weights)
  wide_weights = {**state_dict, 'Mixed_6b.branch7x7_1.conv.weight': np.zeros((160, 768, 1, 1), np.float32)}
  wide_weights |= {name: np.ones(160) for name in wide_weights if name.startswith('Mixed_6b.branch7x7_1.bn')}
  with pytest.raises(weights.WeightsError, match=r'Mixed_6b: .* \[192, 160, 128, 192\] channels; use \[192, 128'):
    inception.params_from_state_dict(wide_weights)
