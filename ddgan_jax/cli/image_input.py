"""Reads input images of a command and fits them to a run; errors name the flag."""

from __future__ import annotations

import dataclasses

import numpy as np

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import images as images_lib


def read_image(flag: str, path: str, data_config: DataConfig) -> np.ndarray:
  """Reads an image as [H, W, C] uint8, with the size, channels and `resize` of `data_config`. Raises ConfigError."""
  data_config = dataclasses.replace(data_config, stack=1)
  problem, _ = images_lib.size_problem(*picture_size(flag, path), data_config)
  if problem:
    raise ConfigError(
        f'--{flag}: {path} {problem}; use --resize=cover (resizes it and crops the centre)')
  try:
    return images_lib.decode(images_lib.read_file(path), data_config)
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag}: {path} {error}') from error


def read_mask(path: str, image_path: str, data_config: DataConfig) -> np.ndarray:
  """Reads a mask as [H, W, 1] bool, True where white, fitted like the image at `image_path`. Raises ConfigError."""
  found, image = picture_size('mask', path), picture_size('image', image_path)
  run = (data_config.image_size,) * 2
  if found not in (image, run):
    sizes = ' or '.join(f'{height}x{width}' for height, width in dict.fromkeys((image, run)))
    raise ConfigError(f'--mask: {path} is {found[0]}x{found[1]}; use {sizes}')
  mask = read_image('mask', path, dataclasses.replace(data_config, num_channels=1)) >= 128
  if not mask.any():
    raise ConfigError(f'--mask: {path} is all black; use white for the pixels to inpaint')
  return mask


def picture_size(flag: str, path: str) -> tuple[int, int]:
  """Reads the (height, width) of an image after EXIF rotation. Raises ConfigError."""
  try:
    return images_lib.size(images_lib.read_file(path))
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag}: {path} {error}') from error


def downscale_factor(path: str, size: int) -> int:
  """The integer factor between `size` and the size of the image at `path`. Raises ConfigError if there is none."""
  height, width = picture_size('image', path)
  if height != width or height >= size or size % height:
    raise ConfigError(f'--image: {path} is {height}x{width}; use a square image smaller than {size}x{size}, the '
                      "run's size, by an integer factor")
  return size // height
