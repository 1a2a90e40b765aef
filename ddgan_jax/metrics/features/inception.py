"""The FID Inception network: Inception v3 with 1008 classes, as TensorFlow published it on 2015-12-05.

FID is defined by this network's features (Heusel et al. 2017), the Inception score by its logits (Salimans et al.
2016). It differs from torchvision's Inception v3 (Szegedy et al. 2016) in its weights, in its average pools, which
exclude the padding from the mean, and in its last block, which has a max pool.

Pure functions of a dict of arrays. When the weights are loaded, each batch norm is folded into its convolution, and the
1x1 convolutions at the start of a block's branches are merged into one. That includes the one after an average pool: a
1x1 convolution and a mean over pixels commute, and in this order there are fewer channels to pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.metrics.features import resizing, weights

__all__ = [
    'NUM_FEATURES', 'NUM_LOGITS', 'SIZE', 'check_images', 'clean_features', 'conv', 'features', 'load',
    'params_from_state_dict', 'resize']

Params = dict[str, dict[str, Any]]

SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008
_BATCH_NORM_EPSILON = 1e-3

_STEM = ('Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3')
# Branches that start with a 1x1 convolution, and its output channels; other convolutions are in `_LATER`.
_BLOCKS_35 = {
    block: {'branch1x1': 64, 'branch5x5_1': 48, 'branch3x3dbl_1': 64, 'branch_pool': pooled}
    for block, pooled in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64))}
_BLOCKS_17 = {
    block: {'branch1x1': 192, 'branch7x7_1': inner, 'branch7x7dbl_1': inner, 'branch_pool': 192}
    for block, inner in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192))}
_BLOCK_7A = {'branch3x3_1': 192, 'branch7x7x3_1': 192}
_BLOCK_7B = {'branch1x1': 320, 'branch3x3_1': 384, 'branch3x3dbl_1': 448, 'branch_pool': 192}
_BLOCK_7C = {name: channels for name, channels in _BLOCK_7B.items() if name != 'branch_pool'}
_FUSED = {**_BLOCKS_35, **_BLOCKS_17, 'Mixed_7a': _BLOCK_7A, 'Mixed_7b': _BLOCK_7B, 'Mixed_7c': _BLOCK_7C}

_LATER_7 = ('branch3x3_2a', 'branch3x3_2b', 'branch3x3dbl_2', 'branch3x3dbl_3a', 'branch3x3dbl_3b')
_LATER = {
    **dict.fromkeys(_BLOCKS_35, ('branch5x5_2', 'branch3x3dbl_2', 'branch3x3dbl_3')),
    'Mixed_6a': ('branch3x3', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'),
    **dict.fromkeys(_BLOCKS_17, ('branch7x7_2', 'branch7x7_3', *(f'branch7x7dbl_{k}' for k in range(2, 6)))),
    'Mixed_7a': ('branch3x3_2', 'branch7x7x3_2', 'branch7x7x3_3', 'branch7x7x3_4'),
    'Mixed_7b': _LATER_7,
    'Mixed_7c': ('branch_pool', *_LATER_7),
}


def load(path: str | None = None, allow_any: bool = False) -> Params:
  """Loads the published weights for `features`; see `weights.find`. Raises WeightsError and TorchFileError."""
  return weights.load(weights.INCEPTION, params_from_state_dict, path, allow_any)


def params_from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
  """Converts the tensors of a PyTorch port of the network to parameters of `features`.

  Args:
    state_dict: `<layer>.conv.weight` OIHW, `<layer>.bn.{weight,bias,running_mean,running_var}`, `fc.{weight,bias}`.

  Returns:
    Layer → {'kernel': HWIO (in × out for 'fc'), 'bias'}, float32 numpy; one layer per block for its merged 1x1s.

  Raises:
    WeightsError: a tensor is missing or has another shape; names the first.
  """

  def tensor(name: str) -> np.ndarray:
    if name not in state_dict:
      raise weights.WeightsError(f'{name} is missing; use the published weights of FID Inception')
    return np.asarray(state_dict[name], np.float64)

  def folded(layer: str) -> dict[str, np.ndarray]:
    scale = tensor(f'{layer}.bn.weight') / np.sqrt(tensor(f'{layer}.bn.running_var') + _BATCH_NORM_EPSILON)
    kernel = tensor(f'{layer}.conv.weight').transpose(2, 3, 1, 0) * scale
    bias = tensor(f'{layer}.bn.bias') - tensor(f'{layer}.bn.running_mean') * scale
    return {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}

  params = {layer: folded(layer) for layer in _STEM}
  for block, names in _LATER.items():
    params |= {f'{block}.{name}': folded(f'{block}.{name}') for name in names}
  for block, branches in _FUSED.items():
    parts = [folded(f'{block}.{name}') for name in branches]
    params[block] = {
        'kernel': np.concatenate([part['kernel'] for part in parts], axis=-1),
        'bias': np.concatenate([part['bias'] for part in parts])}
    found = [len(part['bias']) for part in parts]
    if found != [*branches.values()]:
      raise weights.WeightsError(f'{block}: the 1x1 convolutions have {found} channels; use {[*branches.values()]}')
  weight, bias = tensor('fc.weight'), tensor('fc.bias')
  if weight.shape != (NUM_LOGITS, NUM_FEATURES):
    raise weights.WeightsError(f'fc.weight has shape {weight.shape}; use {(NUM_LOGITS, NUM_FEATURES)}, the FID '
                               "Inception network, not torchvision's")
  params['fc'] = {'kernel': weight.T.astype(np.float32), 'bias': bias.astype(np.float32)}
  return params


def features(params: Params, images_uint8: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Features and logits of images.

  Args:
    params: parameters of `load` or `params_from_state_dict`.
    images_uint8: [B, H, W, C] uint8, any size; C = 3, or 1 for grey images, which are repeated to RGB. Resized to
      299 x 299 by bilinear interpolation without antialiasing (corners not aligned).

  Returns:
    pool3 [B, 2048] and logits [B, 1008], float32.

  Raises:
    UserError: the images are not uint8 [B, H, W, 1 or 3].
  """
  check_images(images_uint8)
  # Values must agree to 0.01 between machines, so no bfloat16 or TF32 products on accelerators.
  with jax.default_matmul_precision('highest'):
    return _network(params, 2 * resize(images_uint8, SIZE) - 1)


def clean_features(params: Params, images_uint8: jax.Array) -> jax.Array:
  """pool3 features [B, 2048] for clean-fid's FID (Parmar et al. 2022), of images as in `features`.

  They are resized by Pillow's antialiased bicubic filter, without rounding, clipped to [0, 255], and mapped to
  (x - 128) / 128.
  """
  check_images(images_uint8)
  with jax.default_matmul_precision('highest'):
    x = (resizing.bicubic(images_uint8, SIZE) - 128) / 128
    return _network(params, jnp.broadcast_to(x, (*x.shape[:3], 3)))[0]


def _network(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """pool3 and logits of [B, 299, 299, 3]."""
  x = conv(params['Conv2d_1a_3x3'], x, stride=2, padding='VALID')
  x = _conv_valid(params['Conv2d_2a_3x3'], x)
  x = conv(params['Conv2d_2b_3x3'], x)
  x = _max_pool(x)
  x = conv(params['Conv2d_3b_1x1'], x)
  x = _conv_valid(params['Conv2d_4a_3x3'], x)
  x = _max_pool(x)
  for block in _BLOCKS_35:
    x = _block_35(_block_params(params, block), _BLOCKS_35[block], x)
  x = _block_6a(_block_params(params, 'Mixed_6a'), x)
  for block in _BLOCKS_17:
    x = _block_17(_block_params(params, block), _BLOCKS_17[block], x)
  x = _block_7a(_block_params(params, 'Mixed_7a'), _BLOCK_7A, x)
  x = _block_8(_block_params(params, 'Mixed_7b'), _BLOCK_7B, x)
  x = _block_8(_block_params(params, 'Mixed_7c'), _BLOCK_7C, x)
  pool3 = x.mean(axis=(1, 2))
  return pool3, pool3 @ params['fc']['kernel'] + params['fc']['bias']


def check_images(images_uint8: jax.Array) -> None:
  """Raises UserError for anything but uint8 [B, H, W, 1 or 3]."""
  shape, dtype = np.shape(images_uint8), getattr(images_uint8, 'dtype', type(images_uint8).__name__)
  if len(shape) != 4 or shape[-1] not in (1, 3) or dtype != jnp.uint8:
    raise UserError(f'images is {dtype} {shape}; use uint8 (number, height, width, 1 or 3 channels)')


def resize(images_uint8: jax.Array, size: int) -> jax.Array:
  """Resizes uint8 [B, H, W, 1 or 3] to float32 [B, size, size, 3] in [0, 1]; bilinear, no antialiasing."""
  x = images_uint8.astype(jnp.float32) / 255
  x = jax.image.resize(x, (x.shape[0], size, size, x.shape[3]), 'bilinear', antialias=False)
  return jnp.broadcast_to(x, (*x.shape[:3], 3))


def _block_params(params: Params, block: str) -> Params:
  """The layers of a block by name, with its merged 1x1 convolutions as 'first'."""
  layers = {name.removeprefix(f'{block}.'): value for name, value in params.items() if name.startswith(f'{block}.')}
  return {**layers, 'first': params[block]} if block in params else layers


def conv(layer: dict[str, Any], x: jax.Array, stride: int = 1, padding: str = 'SAME') -> jax.Array:
  """Convolution of [B, H, W, C], bias and ReLU."""
  return jax.nn.relu(_linear_conv(layer, x, stride, padding))


def _linear_conv(layer: dict[str, Any], x: jax.Array, stride: int = 1, padding: str = 'SAME') -> jax.Array:
  return jax.lax.conv_general_dilated(
      x, layer['kernel'], (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + layer['bias']


def _conv_valid(layer: dict[str, Any], x: jax.Array) -> jax.Array:
  """A 3x3 convolution without padding, computed with padding and cropped: three times faster on XLA's CPU backend."""
  return conv(layer, x)[:, 1:-1, 1:-1]


def _chain(layers: Params, names: str, x: jax.Array) -> jax.Array:
  for name in names.split():
    x = conv(layers[name], x)
  return x


def _first_convs(layers: Params, branches: dict[str, int], x: jax.Array) -> list[jax.Array]:
  """The merged 1x1 convolutions of a block; a pool branch is pooled between its convolution and its ReLU."""
  parts = jnp.split(_linear_conv(layers['first'], x), np.cumsum([*branches.values()])[:-1].tolist(), axis=-1)
  return [jax.nn.relu(_average_pool(part) if name == 'branch_pool' else part) for name, part in zip(branches, parts)]


def _block_35(layers: Params, branches: dict[str, int], x: jax.Array) -> jax.Array:
  one, five, three, pooled = _first_convs(layers, branches, x)
  five = _chain(layers, 'branch5x5_2', five)
  three = _chain(layers, 'branch3x3dbl_2 branch3x3dbl_3', three)
  return jnp.concatenate([one, five, three, pooled], axis=-1)


def _block_6a(layers: Params, x: jax.Array) -> jax.Array:
  three = conv(layers['branch3x3'], x, stride=2, padding='VALID')
  double = _chain(layers, 'branch3x3dbl_1 branch3x3dbl_2', x)
  double = conv(layers['branch3x3dbl_3'], double, stride=2, padding='VALID')
  return jnp.concatenate([three, double, _max_pool(x)], axis=-1)


def _block_17(layers: Params, branches: dict[str, int], x: jax.Array) -> jax.Array:
  one, seven, double, pooled = _first_convs(layers, branches, x)
  seven = _chain(layers, 'branch7x7_2 branch7x7_3', seven)
  double = _chain(layers, 'branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5', double)
  return jnp.concatenate([one, seven, double, pooled], axis=-1)


def _block_7a(layers: Params, branches: dict[str, int], x: jax.Array) -> jax.Array:
  three, seven = _first_convs(layers, branches, x)
  three = conv(layers['branch3x3_2'], three, stride=2, padding='VALID')
  seven = _chain(layers, 'branch7x7x3_2 branch7x7x3_3', seven)
  seven = conv(layers['branch7x7x3_4'], seven, stride=2, padding='VALID')
  return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


def _block_8(layers: Params, branches: dict[str, int], x: jax.Array) -> jax.Array:
  one, three, double, *pooled = _first_convs(layers, branches, x)
  if not pooled:  # the last block
    pooled = [conv(layers['branch_pool'], _max_pool(x, stride=1, padding='SAME'))]
  double = _chain(layers, 'branch3x3dbl_2', double)
  return jnp.concatenate([
      one,
      _chain(layers, 'branch3x3_2a', three), _chain(layers, 'branch3x3_2b', three),
      _chain(layers, 'branch3x3dbl_3a', double), _chain(layers, 'branch3x3dbl_3b', double),
      *pooled], axis=-1)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = 'VALID') -> jax.Array:
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
  """3x3 average pool that excludes the padding."""
  total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME')
  rows, columns = (np.convolve(np.ones(n), np.ones(3), 'same') for n in x.shape[1:3])
  return total / (rows[:, None, None] * columns[:, None]).astype(np.float32)


def __dir__() -> list[str]:
  return __all__
