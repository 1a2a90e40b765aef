"""Fields of the config that do not belong to a file of the original, as the names and shapes of its tensors show."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddgan_jax.config import GeneratorConfig
from ddgan_jax.config.checks import SHARED
from ddgan_jax.interop import pytorch
from ddgan_jax.interop.pytorch import DISCRIMINATORS, InteropError
from ddgan_jax.models.discriminator import BLOCKS

_MOST_CHANGES = 3  # fields that may be wrong at once, besides those that are read off
_SHORTCUT = re.compile(r'\.(Conv_2\.(weight|bias)|NIN_0\.[Wb])$')  # of a block whose width changes: ch_mult decides


def generator_fields(state_dict: Mapping[str, np.ndarray], config: GeneratorConfig) -> dict[str, Any]:
  """The fields of `GeneratorConfig` that the tensors show, with the file's values.

  Dimensions are read off. For the fields that decide which tensors there are, those values are searched for that fit
  with the fewest changes to the config, at most three; if none do, these fields are left out. `fir` is among the fields
  only if it shows, and progressive_combine, image_size, fir_kernel, fourier_scale, skip_rescale, centered, not_use_tanh
  and dropout never are.

  Args:
    state_dict: name → array of the original's generator, with or without `module.` before the names.
    config: what the file should be.

  Raises:
    InteropError: the tensors are those of a discriminator, or of no generator of the original.
  """
  tensors = _without_prefix(state_dict)
  if is_discriminator(tensors):
    raise InteropError('holds a discriminator (start_conv.weight, end_linear.weight, …), must hold a generator: '
                       'netG_*.pth, or the whole content.pth')
  layers = sum(bool(re.fullmatch(r'z_transform\.\d+\.weight', name)) for name in tensors)
  if not layers:
    raise InteropError('holds tensors that are not those of a generator of the original '
                       f'({next(iter(tensors), "nothing")}, …)')
  fields: dict[str, Any] = {'n_mlp': layers - 1}
  found = next(_candidates(tensors, _replaced(config, **fields)), None)
  if found is None:
    return fields
  candidate, changes = found
  name_of = {path: name for name, path, _ in pytorch.generator_rows(candidate)}
  shape = lambda *path: tensors[name_of[path]].shape
  width, fields['num_channels'] = shape('conv_in', 'kernel')[:2]
  fields['z_emb_dim'], fields['nz'] = shape('latent_dense_0', 'kernel')
  fields['num_channels_dae'] = width
  if [*_names(_replaced(candidate, fir=not candidate.fir))] != [*_names(candidate)]:
    fields['fir'] = candidate.fir
  features = [shape(f'down_{i}_block_0', 'conv_0', 'kernel')[0] for i in range(len(candidate.ch_mult))]
  return fields | changes | {'ch_mult': tuple(f // width if f % width == 0 else f / width for f in features)}


def is_discriminator(state_dict: Mapping[str, np.ndarray]) -> bool:
  """Whether the tensors have the names of the original's discriminators."""
  return {'start_conv.weight', 'end_linear.weight'} <= set(_without_prefix(state_dict))


def discriminator_fields(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The fields of `DiscriminatorConfig` that the tensors show: all but `image_size` and `stddev_group`.

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


def _candidates(tensors: Mapping[str, np.ndarray], config: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Architectures that have the names of the tensors, with the fields that differ from `config`; the nearest first."""
  resolutions = [config.image_size >> i for i in range(7)]
  choices: dict[str, Sequence[Any]] = {
      **{field.name: field.metadata['choices'] for field in dataclasses.fields(GeneratorConfig) if field.name in (
          'resblock_type', 'progressive', 'progressive_input', 'embedding_type')},
      **{field: (True, False) for field in ('fir', 'conditional', 'resamp_with_conv')},
      'ch_mult': [(1,) * levels for levels in range(1, 8)],
      'num_res_blocks': range(1, 9),
      'attn_resolutions': [subset for n in range(3) for subset in itertools.combinations(resolutions, n)]}
  names = [name for name in tensors if not _SHORTCUT.search(name)]
  for count in range(_MOST_CHANGES + 1):
    for fields in itertools.combinations(choices, count):
      for values in itertools.product(*(choices[field] for field in fields)):
        changes = dict(zip(fields, values))
        candidate = _replaced(config, **changes)
        found = [*itertools.takewhile(tensors.__contains__, _names(candidate))]
        if len(found) == len(names) == sum(1 for _ in _names(candidate)) and _fits(tensors, candidate):
          yield candidate, changes


def _replaced(config: Any, **changes: Any) -> types.SimpleNamespace:
  """A config without its checks, which forbid some of what is tried."""
  candidate = types.SimpleNamespace(**vars(config) | changes)
  candidate.resolutions = tuple(candidate.image_size >> i for i in range(len(candidate.ch_mult)))
  return candidate


def _names(config: Any) -> Iterator[str]:
  return (name for name, *_ in pytorch.generator_rows(config) if not _SHORTCUT.search(name))


def _fits(tensors: Mapping[str, np.ndarray], config: Any) -> bool:
  """Whether two things that names do not tell apart are as in `config`: shortcuts, and how the input pyramid joins."""
  if config.resblock_type == 'ddpm' and any('.Conv_2.' in name for name in tensors):
    return False
  kernels = {tensors[name].shape[-1] for name, path, _ in pytorch.generator_rows(config)
             if path[0] == 'down_0_pyramid' and path[-1] == 'kernel'}
  return kernels <= {1 if config.progressive_input == 'input_skip' else 3}
