"""Converts parameters from and to the PyTorch original; needs no PyTorch.

A state dict is a plain dict of numpy arrays under the original's names; a `module.` prefix is accepted and dropped. The
original numbers the generator's layers in order of use, `all_modules.<k>`. Convolutions are OIHW in PyTorch and HWIO
here, linear weights out × in there and in × out here, the original's `NIN` layers in × out on both sides.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import models
from ddgan_jax.config import DiscriminatorConfig, GeneratorConfig, UserError
from ddgan_jax.models.discriminator import BLOCKS
from ddgan_jax.utils import checks

__all__ = [
    'DISCRIMINATORS', 'InteropError', 'discriminator_params', 'discriminator_rows', 'discriminator_state_dict',
    'generator_params', 'generator_rows', 'generator_state_dict']

Params = dict[str, Any]
StateDict = dict[str, np.ndarray]

DISCRIMINATORS = ('small', 'large')  # of the original

# (PyTorch name, path in our parameters, layout): 'same', 'linear' (transposed), 'conv' (OIHW ↔ HWIO), 'conv1x1'
# (OI11 ↔ in × out), or 'unused' (a tensor that the original stores and never reads; its shape replaces the path).
Row = tuple[str, tuple, str]

_ADVICE = 'use the config with which the file was trained'


class InteropError(UserError):
  """The tensors do not match the configured architecture."""


def generator_params(state_dict: Mapping[str, np.ndarray], config: GeneratorConfig) -> Params:
  """Converts the original generator's tensors to parameters of `models.Generator(config)`.

  Args:
    state_dict: name → array, as in `netG_<epoch>.pth`, with or without the prefix `module.`.
    config: the architecture of the tensors.

  Returns:
    Nested dict of float32 numpy arrays.

  Raises:
    InteropError: a tensor is missing, unknown or of another shape; names the first.
    TypeError: `state_dict` is not a dict, or `config` not a GeneratorConfig.
  """
  _check(state_dict, 'state_dict', config, GeneratorConfig)
  return _to_params(state_dict, generator_rows(config), _generator_shapes(config))


def discriminator_params(state_dict: Mapping[str, np.ndarray], config: DiscriminatorConfig) -> Params:
  """Converts the original discriminator's tensors to parameters of `models.Discriminator(config)`.

  See `generator_params`.
  """
  _check(state_dict, 'state_dict', config, DiscriminatorConfig)
  return _to_params(state_dict, discriminator_rows(config), _discriminator_shapes(config))


def generator_state_dict(params: Params, config: GeneratorConfig) -> StateDict:
  """The inverse of `generator_params`: float32 arrays under the original's names, in its layouts and order."""
  _check(params, 'params', config, GeneratorConfig)
  return _to_state_dict(params, generator_rows(config))


def discriminator_state_dict(params: Params, config: DiscriminatorConfig) -> StateDict:
  """The inverse of `discriminator_params`."""
  _check(params, 'params', config, DiscriminatorConfig)
  return _to_state_dict(params, discriminator_rows(config))


def _check(tensors: Any, name: str, config: Any, kind: type) -> None:
  if not isinstance(tensors, Mapping):
    how = ' (interop.torch_file.read_state_dict reads a file)' if isinstance(tensors, (str, os.PathLike)) else ''
    raise TypeError(f'{name} is {checks.describe(tensors)}; use a dict of arrays{how}')
  checks.instance('config', config, kind)


def generator_rows(config: GeneratorConfig) -> Iterator[Row]:
  """Every tensor of the generator in the original's order. Raises InteropError if the original has none like it."""
  _check_no_conditions('generator', config)
  for field, possible in (
      ('kind', config.kind == 'ncsnpp'), ('nz', config.nz > 0), ('prediction', config.prediction == 'x_0'),
      ('transform', config.transform == 'none')):
    if not possible:
      raise InteropError(
          f'generator.{field} is {getattr(config, field)!r}, which the original does not have')
  counter = iter(range(10_000))
  ddpm = config.resblock_type == 'ddpm'
  last = len(config.ch_mult) - 1
  pyramid_conv = 'Conv2d_0' if config.fir else 'Conv_0'

  def layer() -> str:
    return f'all_modules.{next(counter)}'

  def block(name: str, features: int, has_shortcut: bool) -> Iterator[Row]:
    torch_name = layer()
    yield from _weight_and_bias(f'{torch_name}.GroupNorm_0.style', (name, 'norm_0', 'style'), 'linear')
    yield from _weight_and_bias(f'{torch_name}.Conv_0', (name, 'conv_0'), 'conv')
    if config.conditional:
      yield from _weight_and_bias(f'{torch_name}.Dense_0', (name, 'time_dense'), 'linear')
    else:
      yield f'{torch_name}.Dense_0.weight', (features, 4 * config.num_channels_dae), 'unused'
      yield f'{torch_name}.Dense_0.bias', (features,), 'unused'
    if config.resblock_type == 'biggan_oneadagn':
      yield from _norm(f'{torch_name}.GroupNorm_1', (name, 'norm_1'))
    else:
      yield from _weight_and_bias(f'{torch_name}.GroupNorm_1.style', (name, 'norm_1', 'style'), 'linear')
    yield from _weight_and_bias(f'{torch_name}.Conv_1', (name, 'conv_1'), 'conv')
    if has_shortcut and ddpm:
      yield from _nin(f'{torch_name}.NIN_0', (name, 'shortcut'))
    elif has_shortcut:
      yield from _weight_and_bias(f'{torch_name}.Conv_2', (name, 'shortcut'), 'conv1x1')

  def attention(name: str) -> Iterator[Row]:
    torch_name = layer()
    yield from _norm(f'{torch_name}.GroupNorm_0', (name, 'norm'))
    for k, path in enumerate(('query', 'key', 'value', 'out')):
      yield from _nin(f'{torch_name}.NIN_{k}', (name, path))

  def resampling(name: str, features: int) -> Iterator[Row]:
    if not ddpm:
      yield from block(name, features, True)
    else:
      torch_name = layer()  # the original counts this layer even if it has no tensors
      if config.resamp_with_conv:
        yield from _weight_and_bias(f'{torch_name}.{pyramid_conv}', (name, 'conv'), 'conv')

  if config.conditional:
    if config.embedding_type == 'fourier':
      yield f'{layer()}.W', ('fourier',), 'same'
    for k in (0, 1):
      yield from _weight_and_bias(layer(), (f'time_dense_{k}',), 'linear')
  yield from _weight_and_bias(layer(), ('conv_in',), 'conv')

  channels = config.num_channels_dae
  skips = [channels]
  for i, mult in enumerate(config.ch_mult):
    features = config.num_channels_dae * mult
    for j in range(config.num_res_blocks):
      yield from block(f'down_{i}_block_{j}', features, channels != features)
      channels = features
      if config.resolutions[i] in config.attn_resolutions:
        yield from attention(f'down_{i}_attention_{j}')
      skips.append(channels)
    if i < last:
      yield from resampling(f'down_{i}_resample', channels)
      name = f'down_{i}_pyramid'
      if config.progressive_input == 'residual':
        yield from _weight_and_bias(f'{layer()}.{pyramid_conv}', (name, 'conv'), 'conv')
      elif config.progressive_input == 'input_skip':
        yield from _weight_and_bias(f'{layer()}.Conv_0', (name,), 'conv')
        if config.progressive_combine == 'cat':
          channels *= 2
      skips.append(channels)

  yield from block('middle_block_0', channels, False)
  yield from attention('middle_attention')
  yield from block('middle_block_1', channels, False)

  for i in range(last, -1, -1):
    features = config.num_channels_dae * config.ch_mult[i]
    for j in range(config.num_res_blocks + 1):
      yield from block(f'up_{i}_block_{j}', features, channels + skips.pop() != features)
      channels = features
    if config.resolutions[i] in config.attn_resolutions:
      yield from attention(f'up_{i}_attention')
    if config.progressive == 'output_skip' or (config.progressive == 'residual' and i == last):
      yield from _norm(layer(), (f'up_{i}_pyramid_norm',))
      yield from _weight_and_bias(layer(), (f'up_{i}_pyramid',), 'conv')
    elif config.progressive == 'residual':
      yield from _weight_and_bias(f'{layer()}.{pyramid_conv}', (f'up_{i}_pyramid', 'conv'), 'conv')
    if i > 0:
      yield from resampling(f'up_{i}_resample', channels)

  if config.progressive != 'output_skip':
    yield from _norm(layer(), ('norm_out',))
    yield from _weight_and_bias(layer(), ('conv_out',), 'conv')
  for k in range(config.n_mlp + 1):
    yield from _weight_and_bias(f'z_transform.{2 * k + 1}', (f'latent_dense_{k}',), 'linear')


def discriminator_rows(config: DiscriminatorConfig) -> Iterator[Row]:
  """Every tensor of the discriminator in the original's order. Raises InteropError if the original has none like it."""
  _check_no_conditions('discriminator', config)
  if config.kind not in DISCRIMINATORS:
    raise InteropError(f'discriminator.kind is {config.kind!r}, which the original does not have')
  if config.transform != 'none':
    raise InteropError(f'discriminator.transform is {config.transform!r}, which the original does not have')
  yield from _weight_and_bias('t_embed.main.0', ('time_dense_0',), 'linear')
  yield from _weight_and_bias('t_embed.main.2', ('time_dense_1',), 'linear')
  yield from _weight_and_bias('start_conv', ('conv_in',), 'conv')
  for k in range(len(BLOCKS[config.kind])):
    torch_name, path = f'conv{k + 1}', f'block_{k}'
    yield from _weight_and_bias(f'{torch_name}.conv1.0', (path, 'conv_0'), 'conv')
    yield from _weight_and_bias(f'{torch_name}.conv2.0', (path, 'conv_1'), 'conv')
    yield from _weight_and_bias(f'{torch_name}.dense_t1', (path, 'time_dense'), 'linear')
    yield f'{torch_name}.skip.0.weight', (path, 'shortcut', 'kernel'), 'conv'
  yield from _weight_and_bias('final_conv', ('conv_out',), 'conv')
  yield from _weight_and_bias('end_linear', ('dense_out',), 'linear')


def _check_no_conditions(name: str, config: GeneratorConfig | DiscriminatorConfig) -> None:
  if config.num_classes:
    raise InteropError(f'generator.num_classes is {config.num_classes}; use 0, because the {name} of the original is '
                       'not conditioned on labels')
  if config.condition_channels:
    raise InteropError("data.condition is not 'none'; convert a run without a condition, because the original's "
                       f'{name} has none')


@functools.lru_cache(maxsize=8)
def _generator_shapes(config: GeneratorConfig) -> Params:
  x = jnp.zeros((1, config.image_size, config.image_size, config.num_channels))
  init = models.Generator(config).init
  return jax.eval_shape(init, jax.random.key(0), x, jnp.ones(1), jnp.zeros((1, config.nz)))['params']


@functools.lru_cache(maxsize=8)
def _discriminator_shapes(config: DiscriminatorConfig) -> Params:
  x = jnp.zeros((1, config.image_size, config.image_size, config.num_channels))
  return jax.eval_shape(models.Discriminator(config).init, jax.random.key(0), x, jnp.ones(1), x)['params']


def _weight_and_bias(torch_name: str, path: tuple[str, ...], layout: str) -> Iterator[Row]:
  yield f'{torch_name}.weight', (*path, 'kernel'), layout
  yield f'{torch_name}.bias', (*path, 'bias'), 'same'


def _norm(torch_name: str, path: tuple[str, ...]) -> Iterator[Row]:
  yield f'{torch_name}.weight', (*path, 'scale'), 'same'
  yield f'{torch_name}.bias', (*path, 'bias'), 'same'


def _nin(torch_name: str, path: tuple[str, ...]) -> Iterator[Row]:
  yield f'{torch_name}.W', (*path, 'kernel'), 'same'
  yield f'{torch_name}.b', (*path, 'bias'), 'same'


_FROM_TORCH = {
    'same': lambda x: x,
    'linear': lambda x: x.T,
    'conv': lambda x: x.transpose(2, 3, 1, 0),
    'conv1x1': lambda x: x[:, :, 0, 0].T,
}
_TO_TORCH = {
    'same': lambda x: x,
    'linear': lambda x: x.T,
    'conv': lambda x: x.transpose(3, 2, 0, 1),
    'conv1x1': lambda x: x.T[:, :, None, None],
}


def _to_params(state_dict: Mapping[str, np.ndarray], rows: Iterator[Row], shapes: Params) -> Params:
  left = {name.removeprefix('module.'): array for name, array in state_dict.items()}
  params: Params = {}
  for name, path, layout in rows:
    if name not in left:
      raise InteropError(f'{name} is missing in the file, but the configured architecture has it '
                         f'({"/".join(path)}); {_ADVICE}')
    array = np.asarray(left.pop(name), np.float32)
    expected = path if layout == 'unused' else _TO_TORCH[layout](_empty(_leaf(shapes, path).shape)).shape
    if array.shape != expected:
      raise InteropError(f'{name} has shape {list(array.shape)} in the file, but {list(expected)} in the configured '
                         f'architecture; {_ADVICE}')
    if layout == 'unused':
      continue
    *parents, leaf = path
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.ascontiguousarray(_FROM_TORCH[layout](array))
  if left:
    raise InteropError(f'{next(iter(left))} is in the file, but not in the configured architecture '
                       f'({len(left)} such tensors); {_ADVICE}')
  return params


def _to_state_dict(params: Params, rows: Iterator[Row]) -> StateDict:
  state_dict = {}
  for name, path, layout in rows:
    if layout == 'unused':
      state_dict[name] = np.zeros(path, np.float32)
      continue
    state_dict[name] = np.ascontiguousarray(_TO_TORCH[layout](np.asarray(_leaf(params, path))))
  return state_dict


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
  return functools.reduce(lambda node, part: node[part], path, tree)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
  """An array of this shape that needs no memory."""
  return np.broadcast_to(np.float32(0), shape)


def __dir__() -> list[str]:
  return __all__
