"""The architecture that the names and shapes of the original's tensors show, in the fields of `config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddgan_jax.config.checks import SHARED
from ddgan_jax.interop.pytorch import DISCRIMINATORS, InteropError
from ddgan_jax.models.discriminator import BLOCKS


class _Layer(NamedTuple):
  """One of `all_modules`: its kind, its input and output channels, and its tensors by their last names."""

  kind: str
  inputs: int
  outputs: int
  tensors: dict[str, np.ndarray]

  @property
  def has_shortcut(self) -> bool:
    return 'Conv_2.weight' in self.tensors or 'NIN_0.W' in self.tensors


def generator_fields(state_dict: Mapping[str, np.ndarray], image_size: int) -> dict[str, Any]:
  """Reads off the fields of `GeneratorConfig` that the tensors show.

  `fir` shows where a layer resamples with a convolution, `resamp_with_conv` in `ddpm` blocks, `progressive_combine`
  with progressive_input='input_skip'. Nothing shows image_size, fir_kernel, fourier_scale, skip_rescale, centered,
  not_use_tanh or dropout.

  Args:
    state_dict: name → array of the original's generator, with or without `module.` before the names.
    image_size: H = W, to which the levels with attention are translated.

  Returns:
    Field → value.

  Raises:
    InteropError: the tensors are those of a discriminator, or of no generator of the original.
  """
  tensors = _without_prefix(state_dict)
  if is_discriminator(tensors):
    raise InteropError('holds a discriminator (start_conv.weight, end_linear.weight, …), must hold a generator: '
                       'netG_*.pth, or the whole content.pth')
  try:
    return _generator_fields(tensors, image_size)
  except (KeyError, IndexError, ValueError, StopIteration) as error:
    raise InteropError('holds tensors that are not those of a generator of the original '
                       f'({next(iter(tensors), "nothing")}, …)') from error


def is_discriminator(state_dict: Mapping[str, np.ndarray]) -> bool:
  """Whether the tensors have the names of the original's discriminators."""
  return {'start_conv.weight', 'end_linear.weight'} <= set(_without_prefix(state_dict))


def discriminator_fields(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Reads off the fields of `DiscriminatorConfig` that the tensors show: all but `image_size` and `stddev_group`.

  Raises:
    InteropError: they are not those of a discriminator.
  """
  tensors = _without_prefix(state_dict)
  count = len({name.split('.')[0] for name in tensors if re.match(r'conv\d+\.', name)})
  kinds = {len(BLOCKS[kind]): kind for kind in DISCRIMINATORS}
  if not is_discriminator(tensors) or count not in kinds:
    raise InteropError('holds tensors that are not those of a discriminator of the original '
                       f'({next(iter(tensors), "nothing")}, …)')
  start = tensors['start_conv.weight'].shape
  return {'kind': kinds[count], 'num_channels': start[1] // 2, 'ngf': start[0] // 2,
          't_emb_dim': tensors['t_embed.main.0.weight'].shape[0]}


def differences(section: str, found: Mapping[str, Any], config: Any) -> list[str]:
  """Compares what a file says with a section of the config.

  Args:
    section: its name, such as `generator`.
    found: field → value.
    config: the section, an object with these fields.

  Returns:
    For each field that differs a clause with its name and both values.
  """
  clauses = []
  for field, value in found.items():
    configured = getattr(config, field)
    same = set(value) == set(configured) if field == 'attn_resolutions' else value == configured
    if not same:
      said_in = 'data' if field in SHARED.get(section, ()) else section
      clauses.append(f'{said_in}.{field} is {value!r} in the file and {configured!r} in the config')
  return clauses


def _without_prefix(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.removeprefix('module.'): array for name, array in state_dict.items()}


def _generator_fields(tensors: dict[str, np.ndarray], image_size: int) -> dict[str, Any]:
  layers = _layers(tensors)
  first = next(k for k, layer in enumerate(layers) if layer.kind == 'conv')
  width, body = layers[first].outputs, layers[first + 1:]
  latent = [name for name in tensors if re.fullmatch(r'z_transform\.\d+\.weight', name)]
  blocks = [layer for layer in body if layer.kind == 'block']
  ddpm = any('NIN_0.W' in block.tensors for block in blocks)
  fields: dict[str, Any] = {
      'num_channels': layers[first].inputs,
      'num_channels_dae': width,
      'nz': tensors['z_transform.1.weight'].shape[1],
      'z_emb_dim': tensors['z_transform.1.weight'].shape[0],
      'n_mlp': len(latent) - 1,
      'conditional': first > 0,
      'resblock_type': 'ddpm' if ddpm else 'biggan_oneadagn' if 'GroupNorm_1.weight' in blocks[0].tensors else 'biggan',
  }
  if first:
    fields['embedding_type'] = 'fourier' if layers[0].kind == 'fourier' else 'positional'

  def resamples(layer: _Layer) -> bool:
    """A biggan block that keeps its width has a shortcut only if it resamples; ddpm blocks leave that to others."""
    return not ddpm and layer.kind == 'block' and layer.has_shortcut and layer.inputs == layer.outputs

  # The middle is the last attention between two blocks without a shortcut: all blocks after it have one.
  middle = max(
      k for k in range(1, len(body) - 1)
      if [layer.kind for layer in body[k - 1:k + 2]] == ['block', 'attention', 'block']
      and not body[k - 1].has_shortcut and not body[k + 1].has_shortcut)
  levels: list[list[_Layer]] = [[]]
  between: list[list[_Layer]] = []  # what resamples and what joins the pyramid, after each level but the last
  for layer in body[:middle - 1]:
    if not resamples(layer) and layer.kind in ('block', 'attention'):
      levels[-1].append(layer)
      continue
    if levels[-1]:
      between.append([])
      levels.append([])
    between[-1].append(layer)
  of_level = [[layer for layer in level if layer.kind == 'block'] for level in levels]
  fields['num_res_blocks'] = len(of_level[0])
  fields['ch_mult'] = tuple(_ratio(level[0].outputs, width) for level in of_level)
  fields['attn_resolutions'] = tuple(
      image_size >> i for i, level in enumerate(levels) if any(layer.kind == 'attention' for layer in level))
  if between:
    kinds = [layer.kind for layer in between[0][1:]]
    fields['progressive_input'] = {'resample': 'residual', 'combine': 'input_skip'}[kinds[0]] if kinds else 'none'
    if fields['progressive_input'] == 'input_skip':
      doubled = levels[1][0].inputs == 2 * between[0][1].outputs
      fields['progressive_combine'] = 'cat' if doubled else 'sum'
    if ddpm:
      fields['resamp_with_conv'] = between[0][0].kind == 'resample'
  resampling_convs = [layer for layer in body if layer.kind == 'resample']
  if resampling_convs:
    fields['fir'] = 'Conv2d_0.weight' in resampling_convs[0].tensors

  way_up = body[middle + 2:]
  norms = sum(layer.kind == 'norm' for layer in way_up)
  if norms > 1:
    first_conv = next(layer for layer in way_up if layer.kind == 'conv')
    fields['progressive'] = 'output_skip' if first_conv.outputs == fields['num_channels'] else 'residual'
  elif len(levels) > 1:  # with one level, none and output_skip are the same
    fields['progressive'] = 'none'
  return fields


def _ratio(features: int, width: int) -> int:
  if features % width:
    raise ValueError(f'{features} channels are no multiple of {width}')
  return features // width


def _layers(tensors: dict[str, np.ndarray]) -> list[_Layer]:
  """`all_modules` in order; a layer without tensors is of kind `nothing`."""
  parts: dict[int, dict[str, np.ndarray]] = {}
  for name, array in tensors.items():
    module = re.fullmatch(r'all_modules\.(\d+)\.(.+)', name)
    if module:
      parts.setdefault(int(module[1]), {})[module[2]] = array
  if max(parts) > 2 * len(tensors):
    raise ValueError('a number that is too large')
  return [_layer(parts.get(k, {})) for k in range(max(parts) + 1)]


def _layer(tensors: dict[str, np.ndarray]) -> _Layer:
  if not tensors:
    return _Layer('nothing', 0, 0, tensors)
  if 'W' in tensors:
    return _Layer('fourier', 0, 0, tensors)
  if 'GroupNorm_0.style.weight' in tensors:
    features, inputs = tensors['Conv_0.weight'].shape[:2]
    return _Layer('block', inputs, features, tensors)
  if 'NIN_3.W' in tensors:
    return _Layer('attention', 0, 0, tensors)
  for name in ('Conv2d_0.weight', 'Conv_0.weight', 'weight'):
    if name in tensors:
      break
  weight = tensors[name]
  if weight.ndim < 4:
    return _Layer({1: 'norm', 2: 'linear'}[weight.ndim], 0, len(weight), tensors)
  kind = 'conv' if name == 'weight' else 'combine' if weight.shape[-1] == 1 else 'resample'
  return _Layer(kind, weight.shape[1], weight.shape[0], tensors)
