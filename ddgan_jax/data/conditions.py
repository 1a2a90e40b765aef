"""Conditions of `data.condition`, computed from images: what G and D see of an image besides its noisy versions.

Each is a pure function of the images and, for `mask`, of uniform random numbers. Arrays are float32 in [-1, 1].
"""

from __future__ import annotations

import numpy as np

from ddgan_jax.config import DataConfig
from ddgan_jax.config.checks import parse_condition

NUM_UNIFORMS = 12  # random numbers per image
SAMPLES_PER_CONDITION = 6  # in a grid, by default
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def compute(images: np.ndarray, data_config: DataConfig, uniforms: np.ndarray) -> np.ndarray:
  """Computes the conditions of images.

  - `lowres:K`: the mean of each K x K block, [n, H/K, W/K, C];
  - `grey`: the luma, [n, H, W, 1];
  - `mask`: the image with 0 in random boxes and strokes, and a channel that is 1 there and -1 elsewhere,
    [n, H, W, C + 1];
  - `edges`: the magnitude of the Sobel gradient of the luma, scaled so that 1 is the largest possible, [n, H, W, 1];
    without three channels, that of their mean.

  Args:
    images: [n, H, W, C] float32 in [-1, 1].
    data_config: uses condition.
    uniforms: [n, NUM_UNIFORMS] in [0, 1), used by `mask`.

  Returns:
    [n, *data_config.condition_shape] float32.
  """
  kind, factor = parse_condition(data_config.condition)
  if kind == 'lowres':
    n, height, width, channels = images.shape
    return images.reshape(n, height // factor, factor, width // factor, factor, channels).mean((2, 4))
  if kind == 'grey':
    return images @ _LUMA[:, None]
  if kind == 'edges':
    return _sobel(images @ _LUMA if images.shape[-1] == 3 else images.mean(-1))[..., None]
  hole = holes(uniforms, images.shape[1])[..., None]
  return np.concatenate([np.where(hole, np.float32(0), images), np.where(hole, np.float32(1), np.float32(-1))], axis=-1)


def picture(condition: np.ndarray, data_config: DataConfig) -> np.ndarray:
  """Draws conditions [n, h, w, c] as images [n, H, W, 1 or 3] uint8, RGB if the images have three channels or more.

  Smaller ones are enlarged without interpolation; RGB of 8 bits is shown as grey or grey as RGB, to match the images.
  Of measurements the first three channels or the first are shown; of a masked image, the image.
  """
  factor = data_config.image_size // condition.shape[1]
  shown = condition.repeat(factor, axis=1).repeat(factor, axis=2)
  kind, _ = parse_condition(data_config.condition)
  if kind == 'mask':
    shown = shown[..., :-1]
  if data_config.num_channels < 3:
    is_rgb = kind == 'pairs' and not data_config.pair_range and shown.shape[-1] == 3
    shown = shown @ _LUMA[:, None] if is_rgb else shown[..., :1]
  else:
    shown = shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1].repeat(3, axis=-1)
  return to_uint8(shown)


def picture_rows(
    data_config: DataConfig, condition: np.ndarray, samples: np.ndarray, **others: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
  """Arranges condition, samples and other images of it in rows of a grid.

  Args:
    data_config: for `picture`.
    condition: [n, h, w, c] float32.
    samples: [n k, H, W, C] uint8, k samples of each condition in turn; C is 1 or 3.
    **others: [n, H, W, C] uint8 each, by column head, such as the true images.

  Returns:
    [n m, H, W, C] uint8, and the `heads` of `grids.make_grid` for the m columns.
  """
  n, shape = len(condition), samples.shape[1:]
  columns = {
      name: images.reshape(n, -1, *shape)
      for name, images in {'condition': picture(condition, data_config), 'samples': samples, **others}.items()}
  rows = np.concatenate(list(columns.values()), axis=1)
  return rows.reshape(-1, *shape), {name: images.shape[1] for name, images in columns.items()}


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Quantises [-1, 1] to 0 … 255."""
  return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def holes(uniforms: np.ndarray, size: int) -> np.ndarray:
  """Draws a box, a stroke or both for each image: [n, size, size] bool, True in the hole.

  A box has sides of 1/4 to 5/8 of the image; a stroke is a line through three points, 1/8 to 1/4 of the image wide.

  Args:
    uniforms: [n, NUM_UNIFORMS] in [0, 1).
    size: H = W.
  """
  choice, top, left, height, width, thickness = uniforms[:, :6, None, None].swapaxes(0, 1)
  points = uniforms[:, 6:12].reshape(-1, 3, 2)
  centres = (np.arange(size) + 0.5) / size
  y, x = centres[:, None], centres[None, :]
  height, width = 0.25 + 0.375 * height, 0.25 + 0.375 * width
  top, left = top * (1 - height), left * (1 - width)
  box = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
  pixels = np.stack(np.broadcast_arrays(y, x), axis=-1)[None]  # [1, size, size, 2]
  distance = np.minimum(*(_distance(pixels, points[:, i], points[:, i + 1]) for i in range(2)))
  stroke = distance < (0.125 + 0.125 * thickness) / 2
  hole = (box & (choice < 2 / 3)) | (stroke & (choice >= 1 / 3))
  # A stroke may miss every pixel of a small image; its hole is then the box.
  return np.where(hole.any((1, 2), keepdims=True), hole, box)


def _distance(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """Distance of each pixel to the segment from `start` to `end`, [n, 2] each: [n, size, size]."""
  start, end = start[:, None, None], end[:, None, None]
  along = end - start
  share = ((pixels - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
  return np.linalg.norm(pixels - start - np.clip(share, 0, 1)[..., None] * along, axis=-1)


def _sobel(luma: np.ndarray) -> np.ndarray:
  """Magnitude of the Sobel gradient of [n, H, W] in [-1, 1], scaled from 0 … its maximum to [-1, 1]."""
  padded = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode='edge')
  smooth_y = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
  smooth_x = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
  across, down = smooth_y[:, :, 2:] - smooth_y[:, :, :-2], smooth_x[:, 2:] - smooth_x[:, :-2]
  # The sum of squares is at most 80: 8² + 4² for one 3x3 block of -1 and 1.
  return (np.sqrt(across**2 + down**2) * np.float32(2 / np.sqrt(80)) - 1).astype(np.float32)
