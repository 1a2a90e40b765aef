"""Sources: a TFDS name in, random access to uint8 images of one size out.

Everything is read through TFDS's array_record files, whose random access needs no TensorFlow; TensorFlow is imported by
TFDS alone, and only while a data set whose preparation needs it is prepared for the first time.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import preparation
from ddgan_jax.data.preparation import DataError

# Decoding costs from 0.05 ms (32x32) to some ms (256x256) an image, every epoch, and fancy indexing next to nothing, so
# what fits is decoded once. 4 GiB is what a small host (12 to 16 GiB, as in Colab) can spare beside the run itself.
MAX_BYTES_IN_MEMORY = 4 * 2**30


class Source:
  """Random access to N images of one shape; made by `load_source`.

  Attributes:
    name: the TFDS name.
    split: the TFDS split.
    image_shape: (H, W, C) of every image that `gather` returns.
    num_classes: number of classes, or None if the set has no labels.
    labels: [N] int64, or None if the set has no labels or they would have to be read from disk one by one.
    in_memory: whether `gather` is plain indexing, so that decoding processes would gain nothing.
  """

  in_memory = False
  labels: np.ndarray | None = None

  def __init__(self, name: str, split: str, image_shape: tuple[int, int, int], num_classes: int | None):
    self.name = name
    self.split = split
    self.image_shape = image_shape
    self.num_classes = num_classes

  def __len__(self) -> int:
    raise NotImplementedError

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and labels at `indices`, in that order.

    Args:
      indices: [n] integers in 0..N-1, repeats allowed.

    Returns:
      images [n, H, W, C] uint8, a fresh array; labels [n] int32, all 0 if the set has no labels.
    """
    raise NotImplementedError

  def __repr__(self) -> str:
    # grain shows the repr of what it maps in its logs; the default would be fine, but not say which data.
    return f'{type(self).__name__}({self.name!r}, {self.split!r}, {len(self)} images {self.image_shape})'


class ArraySource(Source):
  """A `Source` over arrays in memory.

  Args:
    images: [N, H, W, C] uint8.
    labels: [N] integers, or None.
    name, split, num_classes: see `Source`.
  """

  in_memory = True

  def __init__(
      self,
      images: np.ndarray,
      labels: np.ndarray | None = None,
      name: str = 'array',
      split: str = '',
      num_classes: int | None = None,
  ):
    super().__init__(name, split, images.shape[1:], num_classes)
    self.images = images
    self.labels = None if labels is None else np.asarray(labels, np.int64)

  def __len__(self) -> int:
    return len(self.images)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(len(indices), np.int32) if self.labels is None else self.labels[indices].astype(np.int32)
    return self.images[indices], labels


class RecordSource(Source):
  """A `Source` that reads, decodes and resizes array_record files on demand; can be pickled to worker processes."""

  def __init__(
      self,
      records: Any,
      has_labels: bool,
      data_config: DataConfig,
      image_shape: tuple[int, int, int],
      num_classes: int | None,
  ):
    super().__init__(data_config.name, data_config.split, image_shape, num_classes)
    self._records = records
    self._has_labels = has_labels
    self._data_config = data_config

  def __len__(self) -> int:
    return len(self._records)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    examples = self._records.__getitems__([int(i) for i in indices])
    images = np.empty((len(examples), *self.image_shape), np.uint8)
    for image, example in zip(images, examples):
      image[...] = _decode(example['image'], self.image_shape[-1], self._data_config)
    labels = [int(example['label']) if self._has_labels else 0 for example in examples]
    return images, np.asarray(labels, np.int32)


def load_source(data_config: DataConfig) -> Source:
  """Opens `data.name`, `data.split`, preparing it first if this has never been done in `data.data_dir`.

  Sets of at most `MAX_BYTES_IN_MEMORY` bytes are decoded once into one uint8 array, larger ones are read by random
  access. Grey images are repeated into RGB and RGB images are made grey, as data.num_channels asks; with data.stack=3
  the source stays grey (C = 1), because the pipeline does the stacking. A set without an integer feature `label` gets
  label 0 for every image.

  Args:
    data_config: uses name, split, data_dir, image_size, num_channels, resize and stack.

  Returns:
    A `Source` with image_shape (image_size, image_size, C).

  Raises:
    ConfigError: data.name, data.split, data.image_size, data.resize or data.stack does not fit the data.
    DataError: the data cannot be downloaded or prepared on this machine.
  """
  builder = preparation.find_builder(data_config)
  # Before the preparation: a wrong size should not cost a download.
  _check_features(builder, data_config)
  if not preparation.is_prepared(builder):
    builder = preparation.prepare(builder, data_config)
  _check_split(builder, data_config)
  features = builder.info.features
  label = features['label'] if 'label' in features else None  # noqa: SIM401, a FeaturesDict has no get
  has_labels = label is not None and label.shape == () and np.issubdtype(label.np_dtype, np.integer)
  num_classes = getattr(label, 'num_classes', None) if has_labels else None
  if data_config.stack == 3 and num_classes is not None and num_classes > 10:
    raise ConfigError(
        f'data.stack: found 3, but {data_config.name!r} has {num_classes} classes, and the label 100a + 10b + c has '
        'room for ten')
  try:
    # Encoded bytes rather than pixels: our decoder converts the channels and resizes in the same pass.
    records = builder.as_data_source(data_config.split, decoders={'image': tfds.decode.SkipDecoding()})
  except NotImplementedError as e:
    raise DataError(
        f'{data_config.name} lies in {builder.data_dir} as {builder.info.file_format.value}, which has no random '
        'access; move that folder away to have it prepared again as array_record (downloaded archives are reused), or '
        'use another --config.data.data_dir.') from e
  except ValueError as e:
    raise ConfigError(f'data.split: found {data_config.split!r}, which TFDS refuses: {preparation.one_line(e)}') from e
  if not len(records):
    raise ConfigError(f'data.split: found {data_config.split!r}, which holds no images')

  channels = 1 if data_config.stack == 3 else data_config.num_channels
  shape = (data_config.image_size, data_config.image_size, channels)
  source = RecordSource(records, has_labels, data_config, shape, num_classes)
  if len(source) * int(np.prod(shape)) > MAX_BYTES_IN_MEMORY:
    return source
  return _in_memory(source)


def _in_memory(source: RecordSource) -> ArraySource:
  images = np.empty((len(source), *source.image_shape), np.uint8)
  labels = np.empty(len(source), np.int64)
  if len(source) >= 10_000:
    logging.info('Decoding %d images of %s into memory', len(source), source.name)
  # In pieces, so that the encoded bytes are not all held beside the decoded ones.
  for start in range(0, len(source), 1024):
    part = np.arange(start, min(start + 1024, len(source)))
    images[part], labels[part] = source.gather(part)
  return ArraySource(images, labels if source._has_labels else None, source.name, source.split, source.num_classes)


def _check_features(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> None:
  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict) or 'image' not in features:
    found = ', '.join(features) if isinstance(features, tfds.features.FeaturesDict) else str(features)
    raise ConfigError(f"data.name: found {data_config.name!r}, which has no feature 'image', only: {found}")
  image = features['image']
  if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
    raise ConfigError(
        f"data.name: found {data_config.name!r}, whose 'image' is {np.dtype(image.np_dtype).name} {image.shape}; "
        'must be uint8 (H, W, C)')
  height, width, channels = image.shape
  if data_config.stack == 3 and channels != 1:
    raise ConfigError(
        f'data.stack: found 3, which puts three grey images into R, G, B, but the images of {data_config.name!r} have '
        f'{channels or "an unknown number of"} channels; a grey set such as `digits` or `mnist` would be right')
  if height and width:
    _check_size(height, width, data_config)


def _check_split(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> None:
  # `train[:80%]+test` is one split to TFDS; the names in it are what can be misspelt.
  names = [part.split('[')[0].strip() for part in data_config.split.split('+')]
  for name in names:
    if name not in builder.info.splits and name != 'all':
      known = ', '.join(builder.info.splits)
      raise ConfigError(f'data.split: found {name!r}, but the splits of {data_config.name!r} are: {known}')


def _check_size(height: int, width: int, data_config: DataConfig) -> None:
  size = data_config.image_size
  if data_config.resize == 'none' and (height, width) != (size, size):
    square = f'data.image_size={height}, or ' if height == width else ''
    fits = height <= size and width <= size
    pad = " or data.resize='pad' (centre on black)" if fits else ''
    raise ConfigError(
        f"data.image_size: found {size} with data.resize='none', but the images of {data_config.name!r} are "
        f"{height}x{width}; {square}data.resize='crop' (resize and centre crop){pad} would be right")
  if data_config.resize == 'pad' and (height > size or width > size):
    raise ConfigError(
        f"data.resize: found 'pad', which never shrinks, but the images of {data_config.name!r} are {height}x{width} "
        f"and data.image_size is {size}; data.resize='crop' or data.image_size={max(height, width)} would be right")


def _decode(raw: bytes | np.ndarray, channels: int, data_config: DataConfig) -> np.ndarray:
  """An encoded image, or a [H, W, C] uint8 array -> [image_size, image_size, channels] uint8."""
  if isinstance(raw, np.ndarray):
    image = Image.fromarray(raw[..., 0] if raw.shape[-1] == 1 else raw)
  else:
    image = Image.open(io.BytesIO(raw))
  image = _fit(image.convert('L' if channels == 1 else 'RGB'), data_config)
  return np.asarray(image).reshape(data_config.image_size, data_config.image_size, channels)


def _fit(image: Image.Image, data_config: DataConfig) -> Image.Image:
  """Makes a PIL image data.image_size square by the rule data.resize, or raises ConfigError."""
  size = data_config.image_size
  width, height = image.size
  if (width, height) == (size, size):
    return image
  _check_size(height, width, data_config)
  if data_config.resize == 'pad':
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas
  shorter = min(width, height)
  width, height = (max(size, round(side * size / shorter)) for side in (width, height))
  image = image.resize((width, height), Image.Resampling.LANCZOS if size < shorter else Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return image.crop((left, top, left + size, top + size))
