"""Image grids, and PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from ddgan_jax.reporting import plotting
from ddgan_jax.utils import checks, files

_CELL = 48  # pixels; smaller images are enlarged to about this
_HEAD, _FONT_SIZE = 16, 10  # pixels


def make_grid(
    images: np.ndarray, columns: int | None = None, heads: Mapping[str, int] | None = None) -> np.ndarray:
  """Tiles images row by row into one picture, with a gap between them.

  Images smaller than 48 pixels are enlarged by an integer factor (bicubic).

  Args:
    images: [n, H, W, C] uint8, NumPy or JAX; C is 1 or 3.
    columns: images per row; by default about the square root of n.
    heads: text above the columns → the number of columns that it spans; their sum replaces `columns`.

  Returns:
    [H', W', C] uint8.

  Raises:
    ValueError, TypeError: an argument is not as above.
  """
  checks.uint8('images', images, 'n H W C')
  _check_channels('images', images.shape)
  if columns is not None:
    checks.whole('columns', columns, 1)
  images = np.asarray(images)
  if not len(images):
    raise ValueError('images is empty; use at least 1')
  count, height, width, channels = images.shape
  columns = sum(heads.values()) if heads else columns or int(np.ceil(np.sqrt(count)))
  rows = -(-count // columns)
  scale = max(1, _CELL // max(height, width))
  gap = max(2, scale // 3) if scale > 1 else 2
  cell_h, cell_w = height * scale + gap, width * scale + gap
  grid = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), 64, np.uint8)
  for k, image in enumerate(images):
    top, left = gap + (k // columns) * cell_h, gap + (k % columns) * cell_w
    enlarged = _to_pil(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    grid[top:top + height * scale, left:left + width * scale] = np.asarray(enlarged).reshape(
        height * scale, width * scale, channels)
  return np.concatenate([_head_row(heads, cell_w, grid.shape), grid]) if heads else grid


def _head_row(heads: Mapping[str, int], cell_width: int, grid_shape: tuple[int, ...]) -> np.ndarray:
  """The row of column heads above a grid."""
  row = Image.new('L', (grid_shape[1], _HEAD), 64)
  draw, first = ImageDraw.Draw(row), 0
  for text, span in heads.items():
    font = ImageFont.load_default(_FONT_SIZE)
    if (width := draw.textlength(text, font)) > span * cell_width:
      font = ImageFont.load_default(_FONT_SIZE * span * cell_width / width)
    draw.text(((first + span / 2) * cell_width, _HEAD / 2), text, 255, font, anchor='mm')
    first += span
  return np.asarray(row)[..., None].repeat(grid_shape[2], axis=2)


def make_picture(
    images: np.ndarray, title: str, columns: int | None = None, value_range: tuple[float, ...] = (),
    heads: Mapping[str, int] | None = None) -> np.ndarray:
  """Draws a batch as [H', W', C] uint8: images as a grid, float32 points as a scatter plot with a title.

  Float32 images have values in `value_range`; `describe_values` says what of them is shown.
  """
  if value_range:
    images = values_to_uint8(images, value_range)
  if images.dtype == np.uint8:
    return make_grid(images, columns, heads)
  return plotting.draw(images.reshape(-1, 2), title)


def values_to_uint8(images: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
  """Draws [..., C] values as [..., 3] uint8 from the first three channels, or [..., 1] from the first of two or one."""
  lowest, highest = value_range
  shown = images[..., :3 if images.shape[-1] >= 3 else 1]
  return np.clip(np.round((shown - lowest) * (255 / (highest - lowest))), 0, 255).astype(np.uint8)


def describe_values(num_channels: int, value_range: tuple[float, ...]) -> str:
  """Says what `values_to_uint8` shows."""
  lowest, highest = value_range
  shown = 'channels 0, 1, 2 as red, green, blue' if num_channels >= 3 else 'channel 0'
  return f'{shown} of {num_channels}, {lowest:g} black, {highest:g} bright'


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes [H, W, C] uint8 as a PNG atomically; creates the folder.

  Raises:
    ValueError, TypeError: the image is not uint8, or C is not 1 or 3.
  """
  checks.uint8('image', image, 'H W C')
  _check_channels('image', image.shape)
  image = np.asarray(image)
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path, 'wb') as file:
    _to_pil(image).save(file, format='PNG')


def _check_channels(name: str, shape: tuple[int, ...]) -> None:
  if shape[-1] not in (1, 3):
    raise ValueError(f'{name} has {shape[-1]} channels; use 1 or 3')


def _to_pil(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
