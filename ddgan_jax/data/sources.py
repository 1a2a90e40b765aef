"""Sources: random access to the data of a config, as uint8 images of one size, float32 points or float32 values."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import zlib
from collections.abc import Callable

import filelock
import numpy as np

from ddgan_jax.config import FILE_SOURCES, ConfigError, DataConfig
from ddgan_jax.data import images, points, preparation, readers
from ddgan_jax.data.readers import DataError, PathError
from ddgan_jax.data.readers.arrays import NpzReader
from ddgan_jax.data.readers.open import CONDITIONS, kind_of, open_reader

# Larger sets are memory-mapped. A small host (12 to 16 GiB, as in Colab) can spare 4 GiB.
MAX_BYTES_IN_MEMORY = 4 * 2**30


class Source:
  """Random access to N images of one shape; made by `load_source`.

  Attributes:
    name: its name in messages.
    image_shape: (H, W, C) of every image that `gather` returns.
    labels: [N] int32, or None if the set has no labels.
    num_classes: number of classes, or None if the set has no labels.
    class_names: names of the classes, if known.
    checksum: of all pixels, labels and conditions, equal for equal sets; '' if unknown.
    conditions: the images of data.condition='pairs', in the same order; otherwise None.
    num_threads: number of threads that make batches.
    decodes: whether `gather` decodes, so that worker processes (data.num_workers) help.
  """

  num_threads = 2  # enough where a batch is only indexed
  decodes = False
  class_names: tuple[str, ...] | None = None
  checksum = ''
  conditions: Source | None = None

  def __init__(
      self, name: str, image_shape: tuple[int, int, int], labels: np.ndarray | None = None,
      num_classes: int | None = None):
    self.name = name
    self.image_shape = image_shape
    self.labels = labels
    self.num_classes = num_classes

  def __len__(self) -> int:
    raise NotImplementedError

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and labels at `indices`, in that order.

    Args:
      indices: [n] integers in 0..N-1, repeats allowed.

    Returns:
      images, a new array [n, H, W, C] uint8, or float32 (points, and values in [-1, 1]); labels [n] int32, all 0 if the
      set has none.
    """
    raise NotImplementedError

  def _gather_labels(self, indices: np.ndarray) -> np.ndarray:
    return np.zeros(len(indices), np.int32) if self.labels is None else self.labels[indices].astype(np.int32)


class ArraySource(Source):
  """A `Source` over an array [N, H, W, C], uint8 or float32, in memory or memory-mapped."""

  def __init__(
      self, images: np.ndarray, labels: np.ndarray | None = None, name: str = 'array', num_classes: int | None = None):
    super().__init__(name, images.shape[1:], labels, num_classes)
    self.images = images
    if isinstance(images, np.memmap):
      self.num_threads = 16  # threads may wait for the disk

  def __len__(self) -> int:
    return len(self.images)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(self.images[indices]), self._gather_labels(indices)


class ValueSource(Source):
  """A `Source` over measurements [N, H, W, C], float32, uint16 or uint8, in memory; returns float32 in [-1, 1].

  Args:
    values: the measurements.
    value_range: (lowest, highest), mapped to -1 and 1.
    name, labels, num_classes: see `Source`.
  """

  def __init__(
      self, values: np.ndarray, value_range: tuple[float, float], name: str = 'values',
      labels: np.ndarray | None = None, num_classes: int | None = None):
    super().__init__(name, values.shape[1:], labels, num_classes)
    self._values = values
    self._lowest, highest = value_range
    self._scale = 2 / (highest - self._lowest)
    self.checksum = f'{zlib.crc32(np.ascontiguousarray(values)):08x}{zlib.crc32(b"" if labels is None else labels):08x}'

  def __len__(self) -> int:
    return len(self._values)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = (self._values[indices].astype(np.float64) - self._lowest) * self._scale - 1
    return scaled.astype(np.float32), self._gather_labels(indices)


class DecodingSource(Source):
  """A `Source` that reads, decodes and resizes images each time they are requested (data.cache = 'none').

  Args:
    reader: the reader of the encoded images.
    kept: [N] the reader's indices of the usable images.
    data_config, labels, num_classes: see `images.decode` and `Source`.
  """

  num_threads = 16
  decodes = True

  def __init__(
      self, reader: readers.Reader, kept: np.ndarray, data_config: DataConfig, labels: np.ndarray | None = None,
      num_classes: int | None = None):
    shape = (data_config.image_size, data_config.image_size, images.channels(data_config))
    super().__init__(reader.title, shape, labels, num_classes)
    self._reader = reader
    self._kept = kept
    self._data_config = data_config

  def __len__(self) -> int:
    return len(self._kept)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.empty((len(indices), *self.image_shape), np.uint8)
    kept = self._kept[indices]
    for image, i, item in zip(pixels, kept, self._reader.read_many(kept)):
      try:
        if isinstance(item, images.BadImage):
          raise item
        image[...] = images.decode(item[0], self._data_config)
      except images.BadImage as e:
        raise DataError(f'{self.name}: {self._reader.name(i)} {e}, but was readable when it was checked; '
                        'fix it, or check the data again with ddgan prepare') from e
    return pixels, self._gather_labels(indices)


# Flushed, so that the log of a batch job shows each line at once.
_print = functools.partial(print, flush=True)


def load_source(
    data_config: DataConfig, log: Callable[[str], None] = _print, overwrite: bool = False) -> Source:
  """Opens the data of a config, and prepares them first if necessary.

  Images are converted to grey or RGB to match data.num_channels; with data.stack=3 the source is grey (C = 1), because
  the pipeline stacks. In a set without labels every image has label 0.

  Args:
    data_config: uses all fields but batch_size and flip.
    log: receives a sentence about each slow step and about skipped images.
    overwrite: prepare again even if a prepared set exists.

  Returns:
    A `Source` with image_shape (image_size, image_size, C).

  Raises:
    ConfigError: a field does not fit the data.
    DataError: the data cannot be found, downloaded, prepared or used; no file has changed.
  """
  if data_config.is_points:
    drawn, labels = points.draw()
    source = ArraySource(drawn, labels, data_config.name, num_classes=len(points.CENTRES))
    source.checksum = f'{zlib.crc32(drawn):08x}{zlib.crc32(labels):08x}'
    return source
  log_line = lambda text: log(preparation.printable(text))
  source = _load_images(data_config, log_line, overwrite)
  if data_config.condition == 'pairs':
    source.conditions = _load_pairs(source, data_config, log_line, overwrite)
    source.checksum += source.conditions.checksum[:8]  # that of its pixels
  return source


def pairs_config(data_config: DataConfig, name: str, path: str) -> DataConfig:
  """The fields with which the conditions of data.condition='pairs' are read from `path`."""
  size, _, num_channels = data_config.condition_shape
  as_values = {'resize': 'none', 'cache': 'array'} if data_config.pair_range else {}
  return dataclasses.replace(
      data_config, name=name, path=path, split=CONDITIONS if name == 'npz' else 'train', condition='none',
      condition_path='', pair_size=0, pair_channels=3, pair_range=(), image_size=size, num_channels=num_channels,
      value_range=data_config.pair_range, **as_values)


def _load_pairs(
    source: Source, data_config: DataConfig, log_line: Callable[[str], None], overwrite: bool) -> Source:
  """Opens the conditions of data.condition='pairs'. Raises DataError unless they match the images."""
  path = os.path.expanduser(data_config.condition_path or data_config.path)
  try:
    if not os.path.exists(path):
      raise PathError(f'{path} does not exist')
    kind = kind_of(path)
    if kind not in ('folder', 'zip', 'npz') or (kind == 'npz') != (data_config.name == 'npz'):
      expected = 'an npz' if data_config.name == 'npz' else 'a folder or a zip of images'
      raise PathError(f'{path} is {kind or "of an unknown kind"}; use {expected}, because data.name is '
                      f'{data_config.name!r}')
    pairs = pairs_config(data_config, kind, path)
    if kind != 'npz':
      _check_names(open_reader(data_config), open_reader(pairs))
    found = _load_images(pairs, log_line, overwrite)
    if len(found) != len(source):
      raise PathError(f'{path} has {len(found):,} conditions for {len(source):,} images; use one for each image, in '
                      'the same order')
  except PathError as error:
    raise DataError(f'data.condition_path: {error.problem}') from error
  return found


def _check_names(images_reader: readers.Reader, pairs_reader: readers.Reader) -> None:
  """Raises PathError unless both have the same names, apart from the extensions."""
  names, others = (
      collections.Counter(os.path.splitext(reader.name(i))[0] for i in range(len(reader)))
      for reader in (images_reader, pairs_reader))
  for found, missing, reader in ((names, others, pairs_reader), (others, names, images_reader)):
    lacking = sorted(found - missing)
    if lacking:
      more = f' and {len(lacking) - 3:,} more' if len(lacking) > 3 else ''
      raise PathError(f'{reader.title} has no image named {", ".join(lacking[:3])}{more}; use the same names in both, '
                      'apart from the extension')
  twice = [name for name, count in names.items() if count > 1]
  if twice:
    raise PathError(f'{images_reader.title} has several images named {twice[0]}; rename them, because images and '
                    'conditions are matched by name')


def _load_values(data_config: DataConfig) -> ValueSource:
  """Reads the measurements of an npz. Raises PathError if they do not fit data.value_range and the other fields."""
  path = os.path.expanduser(data_config.path)
  array = CONDITIONS if data_config.split == CONDITIONS else 'images'
  if not os.path.exists(path):
    raise PathError(f'{path} does not exist')
  reader = NpzReader(path, array, ('float32', 'uint16', 'uint8'))
  found, labels = reader.values()
  expected = (data_config.image_size, data_config.image_size, data_config.num_channels)
  if found.shape[1:] != expected:
    sizes, wanted = ('x'.join(map(str, shape)) for shape in (found.shape[1:], expected))
    fields = 'data.pair_size and pair_channels' if array == CONDITIONS else 'data.image_size and num_channels'
    raise PathError(f'{array!r} in {path} are {sizes}; use {wanted}, or change {fields}')
  lowest, highest = data_config.value_range
  for first in range(0, len(found), 1024):  # little memory for the masks
    part = found[first:first + 1024]
    inside = (part >= lowest) & (part <= highest)  # False for NaN
    if not inside.all():
      where = first + int((~inside).any((1, 2, 3)).argmax())
      value = part[where - first][~inside[where - first]][0]
      field = 'data.pair_range' if array == CONDITIONS else 'data.value_range'
      or_change = '' if np.isnan(value) else f', or change {field}'
      raise PathError(
          f'{array}[{where}] in {path} has the value {value}; use values in {lowest} … {highest}{or_change}')
  return ValueSource(found, data_config.value_range, data_config.path, labels, reader.num_classes)


def _load_images(data_config: DataConfig, log_line: Callable[[str], None], overwrite: bool) -> Source:
  """Opens a set of images, and prepares them first if necessary."""
  if data_config.value_range:
    return _load_values(data_config)
  reader = None
  # Finds a prepared set without TFDS, which takes seconds to import.
  prepared = None if overwrite or data_config.name in FILE_SOURCES else preparation.find(data_config)
  if prepared is None or not prepared.has_pixels:
    reader = _make_reader(data_config)
    _check_stack(data_config, reader.num_classes)
    prepared = preparation.prepare(reader, data_config, log_line, overwrite)
  _check_stack(data_config, prepared.num_classes)
  for note in prepared.notes:
    log_line(f'{data_config.path or data_config.name}: {note}.')
  if prepared.skipped:
    first = '; '.join(f'{name} {reason}' for name, reason in prepared.skipped[:3])
    log_line(
        f'data.skip_bad: skipped {len(prepared.skipped):,} of {prepared.count + len(prepared.skipped):,} images '
        f'(all are listed in {prepared.folder / "meta.json"}): {first}')
  labels = prepared.labels() if prepared.has_labels else None
  if prepared.has_pixels:
    in_memory = prepared.count * int(np.prod(prepared.shape)) <= MAX_BYTES_IN_MEMORY
    title = data_config.path or data_config.name
    source = ArraySource(prepared.images(in_memory), labels, title, prepared.num_classes)
  else:
    source = DecodingSource(reader, prepared.kept(), data_config, labels, prepared.num_classes)
  source.class_names, source.checksum = prepared.class_names, prepared.checksum
  return source


def _check_stack(data_config: DataConfig, num_classes: int | None) -> None:
  if data_config.stack == 3 and num_classes is not None and num_classes > 10:
    raise ConfigError(f'data.stack is 3, but {data_config.name!r} has {num_classes} classes; use a set of at most ten, '
                      'because the label is 100a + 10b + c')


def _make_reader(data_config: DataConfig) -> readers.Reader:
  if data_config.name in FILE_SOURCES:
    return open_reader(data_config)
  from ddgan_jax.data.readers import tfds_reader

  with contextlib.ExitStack() as exits:
    # Processes on one machine that start together download once.
    folder = preparation.cache_folder(data_config)
    with contextlib.suppress(OSError):
      folder.mkdir(parents=True, exist_ok=True)
      exits.enter_context(filelock.FileLock(folder / 'tfds.lock'))
    return tfds_reader.TfdsReader(data_config)
