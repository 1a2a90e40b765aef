"""A narrow VGG16 against PyTorch 2.13's numbers, with random weights."""

import json
import zlib

import numpy as np
import pytest

from ddgan_jax.metrics.features import vgg, weights
from ddgan_jax.parallel import compilation
from tests.support import golden, relative_error


def weight(name, shape):
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  return x * np.float32(np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)


@pytest.fixture(scope='module')
def arrays():
  return golden('vgg_narrow.npz')[0]


@pytest.fixture(scope='module')
def state_dict(arrays):
  rows = (str(row).split('|') for row in arrays['param_names'])
  return {name: weight(name, json.loads(shape)) for name, shape in rows}


@pytest.mark.parametrize('case', ['small', 'large'])  # compared with the network's 224 x 224
def test_golden(arrays, state_dict, case):
  found = compilation.jit(vgg.features)(vgg.params_from_state_dict(state_dict), arrays[f'{case}/images'])
  assert found.dtype == np.float32
  assert relative_error(found, arrays[f'{case}/fc2']) < 1e-5


def test_weights_of_other_networks_are_refused(state_dict):
  with pytest.raises(weights.WeightsError, match='features.28.weight is missing; use the published weights'):
    vgg.params_from_state_dict({k: v for k, v in state_dict.items() if k != 'features.28.weight'})
  narrow = {**state_dict, 'classifier.0.weight': np.zeros((64, 12 * 36))}
  with pytest.raises(weights.WeightsError, match=r'classifier.0.weight has shape .* 432\); use 588 columns'):
    vgg.params_from_state_dict(narrow)
