"""Pictures that a command reads, fitted to a run; mistakes name their flag."""

from __future__ import annotations

import dataclasses

import numpy as np

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import images as images_lib


def read_image(flag: str, path: str, data_config: DataConfig) -> np.ndarray:
  """[H, W, C] uint8, of the size and channels that `data_config` says, by its `resize`. Raises ConfigError."""
  data_config = dataclasses.replace(data_config, stack=1)
  problem, _ = images_lib.size_problem(*picture_size(flag, path), data_config)
  if problem:
    raise ConfigError(
        f'--{flag}: {path} {problem}; use --resize=cover (shrink or enlarge it, crop the centre)')
  try:
    return images_lib.decode(images_lib.read_file(path), data_config)
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag}: {path} {error}') from error


def read_mask(path: str, image_path: str, data_config: DataConfig) -> np.ndarray:
  """[H, W, 1] bool, True where the mask is white; fitted as the image at `image_path` is. Raises ConfigError."""
  found, image = picture_size('mask', path), picture_size('image', image_path)
  run = (data_config.image_size,) * 2
  if found not in (image, run):
    sizes = ' or '.join(f'{height}x{width}' for height, width in dict.fromkeys((image, run)))
    raise ConfigError(f'--mask: {path} is {found[0]}x{found[1]}, must be {sizes}')
  mask = read_image('mask', path, dataclasses.replace(data_config, num_channels=1)) >= 128
  if not mask.any():
    raise ConfigError(f'--mask: {path} is black everywhere, so there is nothing to fill in; white is filled in')
  return mask


def picture_size(flag: str, path: str) -> tuple[int, int]:
  """(height, width) of a picture, upright. Raises ConfigError."""
  try:
    return images_lib.size(images_lib.read_file(path))
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag}: {path} {error}') from error


def factor(path: str, size: int) -> int:
  """By how much the picture at `path` is smaller than `size`. Raises ConfigError unless by a whole factor above 1."""
  height, width = picture_size('image', path)
  if height != width or height >= size or size % height:
    raise ConfigError(f'--image: {path} is {height}x{width}, must be square and smaller than the {size}x{size} of the '
                      'run by a whole factor')
  return size // height
