"""Reads the conditions of `ddgan sample`: `--condition` and `--condition_from`; errors name the flag."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddgan_jax.cli import image_input
from ddgan_jax.config import Config, ConfigError, DataConfig
from ddgan_jax.config.checks import parse_condition
from ddgan_jax.data import images as images_lib
from ddgan_jax.data import pipeline, sources
from ddgan_jax.data.readers import PathError
from ddgan_jax.data.readers.open import open_reader
from ddgan_jax.models import conditions


class Conditions(NamedTuple):
  """Conditions to sample.

  Attributes:
    condition: [k, h, w, c] float32.
    truth: [k, H, W, C] float32, the images from which they were computed; None if unknown.
  """

  condition: np.ndarray
  truth: np.ndarray | None


def read(config: Config, condition: str | None, condition_from: str | None) -> Conditions | None:
  """Reads the conditions that the flags name; None without a flag. Raises ConfigError."""
  flags = [(name, path) for name, path in (('condition', condition), ('condition_from', condition_from)) if path]
  if len(flags) > 1:
    raise ConfigError('--condition and --condition_from: use one of them')
  if not flags:
    if conditions.is_required(config):
      raise ConfigError(f'--condition: missing; use it, or --condition_from, because the run was trained with '
                        f'data.condition={config.data.condition!r}')
    return None
  (flag, path), = flags
  if config.data.condition_shape is None:
    raise ConfigError(f"--{flag}: omit it, because the run was trained with data.condition='none'")
  kind, _ = parse_condition(config.data.condition)
  if kind == 'pairs' and flag == 'condition_from':
    raise ConfigError("--condition_from: use --condition, because data.condition='pairs' is not computed from images")
  if not os.path.exists(path):
    raise ConfigError(f'--{flag} is {path!r}, which does not exist; use an image, a folder or an npz')
  return _compute(flag, path, config) if flag == 'condition_from' else Conditions(_read(path, config), None)


def _compute(flag: str, path: str, config: Config) -> Conditions:
  """Computes the conditions of the images at `path`."""
  data_config = dataclasses.replace(config.data, stack=1, resize='cover')
  images = _images(flag, path, data_config, computed=True)
  computed = pipeline.stored_conditions(sources.ArraySource(images), data_config, np.arange(len(images)))
  return Conditions(computed, (images / 127.5 - 1).astype(np.float32))


def _read(path: str, config: Config) -> np.ndarray:
  """Reads conditions themselves."""
  shape = config.data.condition_shape
  if path.endswith('.npz'):
    return _read_npz(path, config)
  kind, _ = parse_condition(config.data.condition)
  if kind == 'mask':
    files = sorted(os.path.join(path, name) for name in os.listdir(path)) if os.path.isdir(path) else [path]
    return np.stack([_read_transparent(file, config) for file in files])
  images = _images('condition', path, dataclasses.replace(
      config.data, image_size=shape[0], num_channels=shape[2], stack=1, condition='none', condition_path='',
      pair_size=0, pair_channels=3, resize=config.data.resize if kind == 'pairs' else 'none'), kind != 'pairs')
  return (images / 127.5 - 1).astype(np.float32)


def _read_npz(path: str, config: Config) -> np.ndarray:
  try:
    with np.load(path) as file:
      found = file['conditions']
  except Exception as error:  # zipfile and its decompressors fail in many ways
    raise ConfigError(f"--condition: {path} cannot be read as npz with an array 'conditions' ({error})") from error
  shape = config.data.condition_shape
  if found.ndim != 4 or found.shape[1:] != shape or not len(found) or found.dtype not in (np.uint8, np.float32):
    raise ConfigError(f"--condition: 'conditions' in {path} is {found.dtype}{list(found.shape)}; use float32 in "
                      f'[-1, 1] or uint8, [n, {", ".join(map(str, shape))}]')
  if found.dtype == np.uint8:
    return (found / 127.5 - 1).astype(np.float32)
  if not np.isfinite(found).all() or np.abs(found).max() > 1:
    raise ConfigError(f"--condition: 'conditions' in {path} has values in {found.min()} … {found.max()}; use [-1, 1]")
  return found


def _read_transparent(path: str, config: Config) -> np.ndarray:
  """Reads an image whose transparent pixels are the hole, as the condition `mask`."""
  pixels = image_input.read_image('condition', path, config.data)
  with Image.open(path) as image:
    alpha = np.asarray(image.convert('RGBA').getchannel('A'))
  grey = dataclasses.replace(config.data, num_channels=1, stack=1, condition='none')
  hole = images_lib.decode(alpha[..., None], grey) < 128  # resized and cropped like the image
  if not hole.any():
    raise ConfigError(f'--condition: {path} has no transparent pixel; make the pixels to fill transparent, or use '
                      '--condition_from for random holes')
  scaled = (pixels / 127.5 - 1).astype(np.float32)
  return np.concatenate([np.where(hole, 0, scaled), np.where(hole, 1, -1)], axis=-1).astype(np.float32)


def _images(flag: str, path: str, data_config: DataConfig, computed: bool) -> np.ndarray:
  """Reads an image, or those of a folder, zip or npz: [k, H, W, C] uint8."""
  size = f'{data_config.image_size}x{data_config.image_size}'
  advice = f'; use {size}, or --condition_from to compute the condition' if computed else f'; use {size}'
  if os.path.isfile(path) and not path.endswith(('.npz', '.zip')):
    height, width = image_input.picture_size(flag, path)
    if images_lib.size_problem(height, width, data_config)[0]:
      raise ConfigError(f'--{flag}: {path} is {height}x{width}{advice}')
    return image_input.read_image(flag, path, data_config)[None]
  kind = 'folder' if os.path.isdir(path) else path[-3:]
  try:
    reader = open_reader(dataclasses.replace(data_config, name=kind, path=path, split='train'))
    images = []
    for i in range(len(reader)):
      try:
        images.append(images_lib.decode(reader.read(i)[0], data_config))
      except images_lib.BadImage as error:
        raise ConfigError(f'--{flag}: {reader.name(i)} in {path} {error}{advice if error.hint else ""}') from error
    return np.stack(images)
  except PathError as error:
    raise ConfigError(f'--{flag}: {error.problem}') from error
