"""The class token of DINOv2 (Oquab et al. 2023), a vision transformer that was trained without labels.

FD-DINOv2 is the Fréchet distance of these features, of ViT-L/14 (Stein et al. 2023, who found that it agrees better
with human judgement than FID does). This module follows their implementation, dgm-eval.

Pure functions of a dict of arrays. When the weights are loaded, the position embeddings are interpolated to 16 x 16
patches, each layer scale is folded into the projection before it, and the scale of the attention's logits into the
queries. All blocks but the last are stacked, and one compiled block processes them in turn; the last one computes only
the class token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.metrics.features import inception, resizing, weights

__all__ = ['MODELS', 'SIZE', 'features', 'load', 'params_from_state_dict']

Params = dict[str, Any]

SIZE = 224
_PATCH = 14
_GRID = SIZE // _PATCH
_HEAD = 64  # channels of an attention head
_EPSILON = 1e-6
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

# Model → (its weights, number of features, number of blocks).
MODELS = {'vitl14': (weights.DINOV2_VITL14, 1024, 24), 'vitb14': (weights.DINOV2_VITB14, 768, 12)}


def load(path: str | None = None, allow_any: bool = False, model: str = 'vitl14') -> Params:
  """Loads the published weights of one of `MODELS` as parameters of `features`; see `inception.load`."""
  published, num_features, num_blocks = MODELS[model]

  def convert(state_dict: Mapping[str, np.ndarray]) -> Params:
    params = params_from_state_dict(state_dict)
    found = len(params['class']), len(params['blocks']['norm1']['bias']) + 1
    if found != (num_features, num_blocks):
      raise weights.WeightsError(f'it has {found[0]} features and {found[1]} blocks; use {num_features} and '
                                 f'{num_blocks}, as {model} has')
    return params

  return weights.load(published, convert, path, allow_any)


def params_from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
  """Converts the published tensors to parameters of `features`.

  Args:
    state_dict: `cls_token`, `pos_embed` [1, 1 + N², D], `patch_embed.proj.{weight,bias}`, `norm.{weight,bias}` and
      `blocks.<k>.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}.{weight,bias}`, `blocks.<k>.{ls1,ls2}.gamma`. D is a
      multiple of 64. Others (`mask_token`) are ignored.

  Returns:
    'patch', 'class' [D], 'positions' [256, D], 'blocks', whose arrays are stacked, 'last' and 'norm'; float32 numpy.

  Raises:
    WeightsError: a tensor is missing or has another shape, or the network has register tokens.
  """

  def tensor(name: str, *shape: int) -> np.ndarray:
    if name not in state_dict:
      raise weights.WeightsError(f'{name} is missing; use the published weights of DINOv2')
    found = np.asarray(state_dict[name], np.float32)
    if found.shape != shape:
      raise weights.WeightsError(f'{name} has shape {found.shape}; use {shape}')
    return found

  def linear(name: str, inputs: int, outputs: int, scale: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
    kernel, bias = tensor(f'{name}.weight', outputs, inputs).T * scale, tensor(f'{name}.bias', outputs) * scale
    return {'kernel': np.ascontiguousarray(kernel, np.float32), 'bias': bias.astype(np.float32)}

  def norm(name: str) -> dict[str, np.ndarray]:
    return {'scale': tensor(f'{name}.weight', dim), 'bias': tensor(f'{name}.bias', dim)}

  def block(k: int) -> Params:
    name = f'blocks.{k}'
    return {
        'norm1': norm(f'{name}.norm1'),
        'qkv': linear(f'{name}.attn.qkv', dim, 3 * dim, query_scale),
        'proj': linear(f'{name}.attn.proj', dim, dim, tensor(f'{name}.ls1.gamma', dim)),
        'norm2': norm(f'{name}.norm2'),
        'fc1': linear(f'{name}.mlp.fc1', dim, 4 * dim),
        'fc2': linear(f'{name}.mlp.fc2', 4 * dim, dim, tensor(f'{name}.ls2.gamma', dim))}

  if 'register_tokens' in state_dict:
    raise weights.WeightsError('it has register_tokens; use the DINOv2 network without registers')
  dim = np.size(state_dict.get('cls_token', ()))
  query_scale = np.repeat(np.float32([_HEAD**-0.5, 1, 1]), dim)
  token = tensor('cls_token', 1, 1, dim // _HEAD * _HEAD)[0, 0]
  side = int(max(np.size(state_dict.get('pos_embed', ())) / dim - 1, 0) ** 0.5)
  positions = tensor('pos_embed', 1, side**2 + 1, dim)[0]
  kernel = tensor('patch_embed.proj.weight', dim, 3, _PATCH, _PATCH).transpose(2, 3, 1, 0)
  numbers = [re.match(r'blocks\.(\d+)\.', name) for name in state_dict]
  last = max([1, *(int(number[1]) for number in numbers if number)])
  return {
      'patch': {'kernel': kernel.reshape(-1, dim), 'bias': tensor('patch_embed.proj.bias', dim)},
      'class': token + positions[0],
      'positions': _interpolate(positions[1:].reshape(side, side, dim)),
      'blocks': jax.tree.map(lambda *arrays: np.stack(arrays), *map(block, range(last))),
      'last': block(last),
      'norm': norm('norm')}


def _interpolate(positions: np.ndarray) -> np.ndarray:
  """[N, N, D] → [256, D]: bicubic interpolation (a = -0.75) without antialiasing, in float64.

  As in the published code, which FD-DINOv2 uses, the grid's step is N / 16.1 instead of N / 16. With N = 37 the last of
  the 16 positions is sampled at 35.12 instead of 35.34. transformers uses N / 16, which changes the features of random
  weights by 2% of the largest.
  """
  side = len(positions)
  if side == _GRID:
    return positions.reshape(_GRID**2, -1)
  x = (np.arange(_GRID) + 0.5) * (side / (_GRID + 0.1)) - 0.5
  first = np.floor(x).astype(int)
  matrix = np.zeros((_GRID, side))
  for tap in range(-1, 3):
    t = np.abs(x - first - tap)
    near, far = (1.25 * t - 2.25) * t**2 + 1, ((-0.75 * t + 3.75) * t - 6) * t + 3
    np.add.at(matrix, (np.arange(_GRID), np.clip(first + tap, 0, side - 1)), np.where(t <= 1, near, far))
  return np.einsum('ih,jw,hwd->ijd', matrix, matrix, positions, optimize=True).astype(np.float32).reshape(_GRID**2, -1)


def features(params: Params, images_uint8: jax.Array) -> jax.Array:
  """The class token after the last layer norm.

  Args:
    params: parameters of `load` or `params_from_state_dict`.
    images_uint8: [B, H, W, C] uint8, square; C = 3, or 1 for grey images, which are repeated to RGB. Resized to
      224 x 224 as Pillow does, to uint8 (`resizing.bicubic_uint8`).

  Returns:
    [B, D] float32; D is 1,024 for vitl14 and 768 for vitb14. With random weights of either size they differ from
    PyTorch (transformers, after the same interpolation) by less than 1e-6 of the largest feature.

  Raises:
    UserError: the images are not uint8 [B, H, W, 1 or 3].
  """
  inception.check_images(images_uint8)
  with jax.default_matmul_precision('highest'):
    x = resizing.bicubic_uint8(images_uint8, SIZE).astype(jnp.float32) / 255
    x = (x - _MEAN) / _DEVIATION  # grey images are repeated here
    x = x.reshape(-1, _GRID, _PATCH, _GRID, _PATCH, 3).swapaxes(2, 3).reshape(len(x), _GRID**2, -1)
    x = _linear(params['patch'], x) + params['positions']
    token = jnp.broadcast_to(params['class'], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([token, x], axis=1)
    x, _ = jax.lax.scan(lambda x, block: (_block(block, x), None), x, params['blocks'])
    return _layer_norm(params['norm'], _block(params['last'], x, 1)[:, 0])


def _block(block: Params, x: jax.Array, num: int | None = None) -> jax.Array:
  """The first `num` tokens after a block, by default all; x is [B, tokens, D]."""
  qkv = _linear(block['qkv'], _layer_norm(block['norm1'], x))
  q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, -1, _HEAD), 2, 0)
  attention = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q[:, :num], k), axis=-1)
  x = x[:, :num]
  x = x + _linear(block['proj'], jnp.einsum('bhqk,bkhd->bqhd', attention, v).reshape(x.shape))
  hidden = _linear(block['fc1'], _layer_norm(block['norm2'], x))
  return x + _linear(block['fc2'], jax.nn.gelu(hidden, approximate=False))


def _linear(layer: dict[str, Any], x: jax.Array) -> jax.Array:
  return x @ layer['kernel'] + layer['bias']


def _layer_norm(layer: dict[str, Any], x: jax.Array) -> jax.Array:
  x = x - x.mean(axis=-1, keepdims=True)
  variance = (x**2).mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(variance + _EPSILON) * layer['scale'] + layer['bias']


def __dir__() -> list[str]:
  return __all__
