"""A narrow DINOv2 against PyTorch 2.13's numbers, with random weights."""

import json
import zlib

import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.metrics.features import dinov2, weights
from ddgan_jax.parallel import compilation
from tests.support import golden, relative_error


def weight(name, shape):
  """A weight of the golden file: a function of the tensor's name. Norms and layer scales are around 1."""
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  if name.endswith('weight') and len(shape) > 1:
    return x * np.float32(np.sqrt(2 / np.prod(shape[1:])))
  return np.float32(0.3) * x + np.float32(len(shape) == 1 and not name.endswith('bias'))


@pytest.fixture(scope='module')
def arrays():
  return golden('dinov2_narrow.npz')[0]


@pytest.fixture(scope='module')
def state_dict(arrays):
  rows = (str(row).split('|') for row in arrays['param_names'])
  return {name: weight(name, json.loads(shape)) for name, shape in rows}


@pytest.mark.parametrize('case', ['cifar', 'large'])  # compared with the network's 224 x 224; `large` is grey
def test_golden(arrays, state_dict, case):
  found = compilation.jit(dinov2.features)(dinov2.params_from_state_dict(state_dict), arrays[f'{case}/images'])
  assert found.dtype == np.float32
  assert relative_error(found, arrays[f'{case}/class']) < 1e-5


def test_position_embeddings_are_interpolated_as_published(arrays, state_dict):
  """torch.nn.functional.interpolate with scale_factor 16.1 / 37; a grid of 16 x 16 stays unchanged."""
  found = dinov2.params_from_state_dict(state_dict)['positions']
  assert found.shape == (256, 128) and relative_error(found[::15], arrays['positions']) < 1e-5
  small = {**state_dict, 'pos_embed': weight('pos_embed', (1, 257, 128))}
  np.testing.assert_array_equal(dinov2.params_from_state_dict(small)['positions'], small['pos_embed'][0, 1:])


@pytest.mark.parametrize('change, message', [
    ({'blocks.2.ls2.gamma': None}, 'blocks.2.ls2.gamma is missing; use the published weights of DINOv2'),
    ({'cls_token': None}, 'cls_token is missing'),
    ({'cls_token': np.zeros((1, 1, 100))}, r'cls_token has shape \(1, 1, 100\); use \(1, 1, 64\)'),
    ({'pos_embed': np.zeros((1, 300, 128))}, r'pos_embed has shape \(1, 300, 128\); use \(1, 290, 128\)'),
    ({'patch_embed.proj.weight': np.zeros((128, 3, 16, 16))}, r'\(128, 3, 16, 16\); use \(128, 3, 14, 14\)'),
    ({'register_tokens': np.zeros((1, 4, 128))}, 'it has register_tokens; use the DINOv2 network without registers'),
])
def test_weights_of_other_networks_are_refused(state_dict, change, message):
  changed = {name: tensor for name, tensor in {**state_dict, **change}.items() if tensor is not None}
  with pytest.raises(weights.WeightsError, match=message):
    dinov2.params_from_state_dict(changed)


def test_the_weights_of_another_model_are_refused(monkeypatch, state_dict):
  """A file of another width or depth, which `allow_any` accepts by its checksum."""
  monkeypatch.setattr(weights, 'find', lambda published, path, allow_any: published.file)
  monkeypatch.setattr(weights.torch_file, 'read_state_dict', lambda file: state_dict)
  for model, expected in (('vitl14', '1024 and 24'), ('vitb14', '768 and 12')):
    with pytest.raises(
        weights.WeightsError,
        match=f'^dinov2_{model}_pretrain.pth: it has 128 features and 3 blocks; use {expected}, as {model} has'):
      dinov2.load(None, True, model)


def test_images_of_another_dtype_are_refused():
  with pytest.raises(UserError, match='images is float32'):
    dinov2.features({}, np.zeros((2, 32, 32, 3), np.float32))
