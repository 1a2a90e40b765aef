"""Reads the conditions of `ddgan sample`: `--condition` and `--condition_from`; errors name the flag."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddgan_jax.config import Config, ConfigError, DataConfig
from ddgan_jax.config.checks import parse_condition
from ddgan_jax.data import images as images_lib
from ddgan_jax.data import pipeline, sources
from ddgan_jax.data.readers import PathError
from ddgan_jax.data.readers.open import kind_of, open_reader
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
    source = sources.load_source(dataclasses.replace(data_config, name='npz', path=path, condition='none'))
  else:
    data_config = dataclasses.replace(data_config, stack=1, num_stacks=0, resize='cover')
    source = sources.ArraySource(_decoded(path, lambda raw: images_lib.decode(raw, data_config)))
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
    fitted = dataclasses.replace(data_config, stack=1, num_stacks=0, resize='cover')
    return _decoded(path, lambda raw: _masked(raw, fitted))
  size, _, num_channels = data_config.condition_shape
  if kind == 'pairs':  # fitted like those of the training
    fitted, alternative = sources.pairs_config(data_config, 'folder', path), ''
  else:
    fitted = DataConfig(image_size=size, num_channels=num_channels)
    alternative = ', or --condition_from to compute the condition'

  def decode(raw: bytes | np.ndarray) -> np.ndarray:
    height, width = raw.shape[:2] if isinstance(raw, np.ndarray) else images_lib.size(raw)
    if images_lib.size_problem(height, width, fitted)[0]:
      raise images_lib.BadImage(f'is {height}x{width}; use {size}x{size}{alternative}')
    return images_lib.decode(raw, fitted) / np.float32(127.5) - 1

  return _decoded(path, decode)


def _read_npz(path: str, data_config: DataConfig) -> np.ndarray:
  """Reads the array `conditions`."""
  if data_config.pair_range:
    source = sources.load_source(sources.pairs_config(data_config, 'npz', path))
    return source.gather(np.arange(len(source)))[0]
  shape = data_config.condition_shape
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


def _decoded(path: str, decode: Callable[[bytes | np.ndarray], np.ndarray]) -> np.ndarray:
  """Decodes an image file, or the images of a folder, zip or npz. Raises ConfigError, which names the image."""
  if os.path.isdir(path) or path.endswith(('.npz', '.zip')):
    reader = open_reader(DataConfig(name=kind_of(path), path=path))
    reads = [(f'{reader.name(i)} in {path}', functools.partial(reader.read, i)) for i in range(len(reader))]
  else:
    reads = [(path, lambda: (images_lib.read_file(path), 0))]
  found = []
  for name, read_one in reads:
    try:
      found.append(decode(read_one()[0]))
    except images_lib.BadImage as error:
      raise ConfigError(f'{name} {error}') from error
  return np.stack(found)


def _masked(raw: bytes | np.ndarray, data_config: DataConfig) -> np.ndarray:
  """The condition `mask` of an image whose transparent pixels are the hole."""
  pixels, alpha = images_lib.decode_with_alpha(raw, data_config)
  hole = alpha < 255
  if not hole.any():
    raise images_lib.BadImage(
        'has no transparent pixel; make the pixels to fill transparent, or use --condition_from for random holes')
  scaled = pixels / np.float32(127.5) - 1
  return np.concatenate([np.where(hole, 0, scaled), np.where(hole, 1, -1)], axis=-1).astype(np.float32)
