"""Reads the conditions of `ddgan sample`: `--condition` and `--condition_from`; errors name the flag."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddgan_jax.config import Config, ConfigError, DataConfig
from ddgan_jax.config.checks import parse_condition
from ddgan_jax.data import images as images_lib
from ddgan_jax.data import pipeline, sources
from ddgan_jax.data.readers import PathError
from ddgan_jax.data.readers.open import CONDITIONS, kind_of, open_reader
from ddgan_jax.models import conditions


class Conditions(NamedTuple):
  """Conditions to sample.

  Attributes:
    condition: [k, h, w, c] float32 in [-1, 1].
    truth: [k, H, W, C], the images from which they were computed, uint8 or, with data.value_range, float32; None if
      unknown.
  """

  condition: np.ndarray
  truth: np.ndarray | None


def read(config: Config, condition: str | None, condition_from: str | None) -> Conditions | None:
  """Reads the conditions that the flags name; None without a flag. Raises ConfigError."""
  flags = [(name, path) for name, path in (('condition', condition), ('condition_from', condition_from)) if path]
  if len(flags) > 1:
    raise ConfigError('--condition and --condition_from: use one of them')
  kind, _ = parse_condition(config.data.condition)
  if not flags:
    if conditions.is_required(config):
      alternative = '' if kind == 'pairs' else ' or --condition_from'
      raise ConfigError(f'--condition is missing; use --condition{alternative}, because the run was trained with '
                        f'data.condition={config.data.condition!r}')
    return None
  (flag, path), = flags
  if kind == 'none':
    raise ConfigError(f"--{flag}: omit it, because the run was trained with data.condition='none'")
  if kind == 'pairs' and flag == 'condition_from':
    raise ConfigError("--condition_from: use --condition, because data.condition='pairs' is not computed from images")
  if not os.path.exists(path):
    raise ConfigError(f'--{flag} is {path!r}, which does not exist; use an image, a folder or an npz')
  try:
    return _compute(path, config.data) if flag == 'condition_from' else Conditions(_read(path, kind, config.data), None)
  except ConfigError as error:
    raise ConfigError(f'--{flag}: {error}') from error
  except PathError as error:
    raise ConfigError(f'--{flag}: {error.problem}') from error


def _compute(path: str, data_config: DataConfig) -> Conditions:
  """Computes the conditions of the images at `path`."""
  if data_config.value_range:
    source = _values(path, data_config, data_config.value_range)
  else:
    data_config = dataclasses.replace(data_config, stack=1, num_stacks=0, resize='cover')
    source = sources.ArraySource(np.stack([_decode(*each, data_config) for each in _raw_images(path)]))
  numbers = np.arange(len(source))
  images, _ = source.gather(numbers)
  truth = pipeline.in_units_of_data(images, data_config) if data_config.value_range else images
  return Conditions(pipeline.stored_conditions(source, data_config, numbers), truth)


def _read(path: str, kind: str, data_config: DataConfig) -> np.ndarray:
  """Reads conditions themselves."""
  if path.endswith('.npz'):
    return _read_npz(path, data_config)
  if data_config.pair_range or data_config.value_range and kind != 'pairs':
    raise ConfigError(f"{path} is not an npz; use an npz with float32 'conditions', because the run has a range of "
                      'values')
  if kind == 'mask':
    fitted = _without_condition(data_config, resize='cover')
    return np.stack([_masked(*each, fitted) for each in _raw_images(path)])
  size, _, num_channels = data_config.condition_shape
  # Only a pair is fitted, in the same way as the pairs of the training.
  fitted = _without_condition(
      data_config, image_size=size, num_channels=num_channels, resize=data_config.resize if kind == 'pairs' else 'none')
  found = []
  for name, raw in _raw_images(path):
    height, width = _size(name, raw)
    if images_lib.size_problem(height, width, fitted)[0]:
      alternative = '' if kind == 'pairs' else ', or --condition_from to compute the condition'
      raise ConfigError(f'{name} is {height}x{width}; use {size}x{size}{alternative}')
    found.append(_decode(name, raw, fitted) / np.float32(127.5) - 1)
  return np.stack(found)


def _without_condition(data_config: DataConfig, **fields) -> DataConfig:
  """The fields that images of 8 bits are decoded with."""
  return dataclasses.replace(data_config, **{
      'stack': 1, 'num_stacks': 0, 'condition': 'none', 'condition_path': '', 'pair_size': 0, 'pair_channels': 3,
      'pair_range': (), 'value_range': (), **fields})


def _read_npz(path: str, data_config: DataConfig) -> np.ndarray:
  shape = data_config.condition_shape
  if data_config.pair_range:
    source = _values(
        path, data_config, data_config.pair_range, split=CONDITIONS, image_size=shape[0], num_channels=shape[2])
    return source.gather(np.arange(len(source)))[0]
  try:
    with np.load(path) as file:
      found = file['conditions']
  except Exception as error:  # zipfile and its decompressors fail in many ways
    raise ConfigError(f"{path} cannot be read as npz with an array 'conditions' ({error})") from error
  if found.ndim != 4 or found.shape[1:] != shape or not len(found) or found.dtype not in (np.uint8, np.float32):
    raise ConfigError(f"'conditions' in {path} is {found.dtype}{list(found.shape)}; use float32 in [-1, 1] or uint8, "
                      f'[n, {", ".join(map(str, shape))}]')
  if found.dtype == np.uint8:
    return found / np.float32(127.5) - 1
  if not np.isfinite(found).all() or np.abs(found).max() > 1:
    raise ConfigError(f"'conditions' in {path} has values in {found.min()} … {found.max()}; use [-1, 1]")
  return found


def _values(path: str, data_config: DataConfig, value_range: tuple[float, ...], **fields) -> sources.Source:
  """Reads an npz of measurements like those of the run."""
  return sources.load_source(_without_condition(
      data_config, name='npz', path=path, cache='array', resize='none', value_range=value_range, **fields))


def _raw_images(path: str) -> Iterator[tuple[str, bytes | np.ndarray]]:
  """The names and undecoded images of an image file, a folder, a zip or an npz."""
  kind = kind_of(path) if os.path.isdir(path) or path.endswith(('.npz', '.zip')) else ''
  if not kind:
    yield path, _file(path)
    return
  reader = open_reader(DataConfig(name=kind, path=path))
  for i in range(len(reader)):
    name = f'{reader.name(i)} in {path}'
    try:
      raw, _ = reader.read(i)
    except images_lib.BadImage as error:
      raise ConfigError(f'{name} {error}') from error
    yield name, raw


def _file(path: str) -> bytes:
  try:
    return images_lib.read_file(path)
  except images_lib.BadImage as error:
    raise ConfigError(f'{path} {error}') from error


def _size(name: str, raw: bytes | np.ndarray) -> tuple[int, int]:
  try:
    return raw.shape[:2] if isinstance(raw, np.ndarray) else images_lib.size(raw)
  except images_lib.BadImage as error:
    raise ConfigError(f'{name} {error}') from error


def _decode(name: str, raw: bytes | np.ndarray, data_config: DataConfig) -> np.ndarray:
  try:
    return images_lib.decode(raw, data_config)
  except images_lib.BadImage as error:
    raise ConfigError(f'{name} {error}') from error


def _masked(name: str, raw: bytes | np.ndarray, data_config: DataConfig) -> np.ndarray:
  """The condition `mask` of an image whose transparent pixels are the hole."""
  try:
    pixels, alpha = images_lib.decode_with_alpha(raw, data_config)
  except images_lib.BadImage as error:
    raise ConfigError(f'{name} {error}') from error
  hole = alpha < 255
  if not hole.any():
    raise ConfigError(f'{name} has no transparent pixel; make the pixels to fill transparent, or use --condition_from '
                      'for random holes')
  scaled = pixels / np.float32(127.5) - 1
  return np.concatenate([np.where(hole, 0, scaled), np.where(hole, 1, -1)], axis=-1).astype(np.float32)
