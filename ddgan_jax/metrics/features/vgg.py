"""The fc2 features of VGG16 (Simonyan and Zisserman 2015), used by improved precision and recall.

Pure functions of a dict of arrays, with the weights that torchvision publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.metrics.features import inception, weights

__all__ = ['NUM_FEATURES', 'SIZE', 'features', 'load', 'params_from_state_dict']

Params = dict[str, dict[str, Any]]

SIZE = 224
NUM_FEATURES = 4096
# torchvision's indices of the convolutions, one tuple per resolution; each is followed by a max pool.
_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def load(path: str | None = None, allow_any: bool = False) -> Params:
  """Loads the published weights as parameters of `features`; see `inception.load`."""
  return weights.load(weights.VGG16, params_from_state_dict, path, allow_any)


def params_from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
  """Converts torchvision's VGG16 tensors to parameters of `features`.

  Args:
    state_dict: `features.<k>.{weight,bias}` OIHW and `classifier.{0,3}.{weight,bias}` out × in; others are ignored.

  Returns:
    Layer → {'kernel': HWIO or in × out, 'bias'}, float32 numpy.

  Raises:
    WeightsError: a tensor is missing or has another shape; names the first.
  """

  def layer(name: str) -> tuple[np.ndarray, np.ndarray]:
    for part in ('weight', 'bias'):
      if f'{name}.{part}' not in state_dict:
        raise weights.WeightsError(f'{name}.{part} is missing; use the published weights of VGG16')
    return tuple(np.asarray(state_dict[f'{name}.{part}'], np.float32) for part in ('weight', 'bias'))

  params = {}
  for k in (k for group in _CONVOLUTIONS for k in group):
    weight, bias = layer(f'features.{k}')
    params[f'features.{k}'] = {'kernel': weight.transpose(2, 3, 1, 0), 'bias': bias}
  channels = len(bias)
  weight, bias = layer('classifier.0')
  if weight.shape[1] != channels * 49:
    raise weights.WeightsError(f'classifier.0.weight has shape {weight.shape}; use {channels * 49} columns '
                               f'({channels} channels of 7 x 7 pixels)')
  # torchvision flattens (C, H, W), this module (H, W, C).
  weight = weight.reshape(-1, channels, 7, 7).transpose(2, 3, 1, 0).reshape(channels * 49, -1)
  params['classifier.0'] = {'kernel': np.ascontiguousarray(weight), 'bias': bias}
  weight, bias = layer('classifier.3')
  params['classifier.3'] = {'kernel': np.ascontiguousarray(weight.T), 'bias': bias}
  return params


def features(params: Params, images_uint8: jax.Array) -> jax.Array:
  """fc2 features [B, 4096] float32, after ReLU, of images as in `inception.features`, resized to 224 x 224."""
  inception.check_images(images_uint8)
  with jax.default_matmul_precision('highest'):
    x = (inception.resize(images_uint8, SIZE) - _MEAN) / _DEVIATION
    for group in _CONVOLUTIONS:
      for k in group:
        x = inception.conv(params[f'features.{k}'], x)
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    x = x.reshape(len(x), -1)
    for name in ('classifier.0', 'classifier.3'):
      x = jax.nn.relu(x @ params[name]['kernel'] + params[name]['bias'])
    return x


def __dir__() -> list[str]:
  return __all__
