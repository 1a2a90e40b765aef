"""Indexed sets of images for metrics, sharded over processes: samples of a run, data sets, arrays, files."""

from __future__ import annotations

import functools
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from ddgan_jax import sampling, train_state
from ddgan_jax.config import Config, ConfigError, DataConfig
from ddgan_jax.data import images as images_lib
from ddgan_jax.data import pipeline, readers, sources
from ddgan_jax.data.readers import DataError, PathError
from ddgan_jax.data.readers.open import open_reader
from ddgan_jax.metrics import statistics
from ddgan_jax.metrics.statistics import Statistics
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, sharding


class ImageSet(NamedTuple):
  """A set of images, accessed by index.

  Attributes:
    name: its name in messages and tables.
    fingerprint: equal for equal sets, '' if unknown.
    size: number of images, or None for an infinite set.
    shape: (H, W, C).
    rows: (first, count) → uint8 (float32 for points) [count / processes, H, W, C], this process's block of images
      first … first + count - 1. All processes make the same calls, with a count divisible by the number of devices;
      images beyond `size` are arbitrary.
    requested_labels: n → [n] int32, the requested labels of the first n images; None without labels.
    take: [n] indices below `size`, in any order → uint8 [n, H, W, C], read by this process alone; None for infinite
      sets.
  """

  name: str
  fingerprint: str
  size: int | None
  shape: tuple[int, int, int]
  rows: Callable[[int, int], np.ndarray]
  requested_labels: Callable[[int], np.ndarray] | None = None
  take: Callable[[np.ndarray], np.ndarray] | None = None


class ConditionData(NamedTuple):
  """Data whose conditions are sampled.

  Attributes:
    source: the data.
    data_config: uses condition, stack and num_stacks.
    samples_per_condition: samples of each condition, which follow each other.
  """

  source: sources.Source
  data_config: DataConfig
  samples_per_condition: int = 1

  def labels(self, num: int) -> np.ndarray:
    """The labels of the first `num` samples, [num] int32."""
    found = []
    count = -(-num // self.samples_per_condition)
    for first in range(0, count, 1024):  # the images are read, too
      numbers = np.arange(first, min(first + 1024, count))
      numbers = pipeline.stored_numbers(self.source, self.data_config, numbers)
      found.append(pipeline.stored_labels(self.source, self.data_config, numbers))
    return np.concatenate(found).repeat(self.samples_per_condition)[:num]

  def conditions_and_labels(self, indices: np.ndarray, with_labels: bool) -> list[np.ndarray]:
    """The conditions of consecutive samples, [n, h, w, c] float32, and with labels [n] int32."""
    first, last = indices[0] // self.samples_per_condition, indices[-1] // self.samples_per_condition
    numbers = pipeline.stored_numbers(self.source, self.data_config, np.arange(first, last + 1))
    found = [pipeline.stored_conditions(self.source, self.data_config, numbers)]
    if with_labels:
      found.append(pipeline.stored_labels(self.source, self.data_config, numbers))
    return [array[indices // self.samples_per_condition - first] for array in found]


def generated_images(
    config: Config, seed: int, mesh: Any, num_timesteps: int | None = None, given: ConditionData | None = None
) -> Callable[..., ImageSet]:
  """Samples of a generator: image i is a function of (seed, i), as in `ddgan_jax.sample`.

  A run with labels samples with uniformly drawn labels (`labels.draw`). A run with data.condition uses the conditions
  and labels of the images of `given`, in stored order, starting over after the last.

  Args:
    config: the config of the run.
    seed: the seed of the noise.
    mesh: the devices that sample.
    num_timesteps: see `train_state.make_sampler`.
    given: the data whose conditions a run with data.condition uses.

  Returns:
    A function of the EMA parameters (replicated or sharded on `mesh`), of a name for tables and, optionally, of another
    seed, which compiles nothing again.
  """
  conditional = bool(config.generator.num_classes)

  def sample(params, seed, indices, condition=None, label=None):
    if conditional and label is None:
      label = labels.draw(seed, indices, config.generator)
    generator_fn, schedule = train_state.make_sampler(
        config, sharding.gather(params, mesh), num_timesteps, label, condition)
    images = sampling.sample_each(seed, indices, generator_fn, schedule, config.image_shape, config.generator.nz)
    return train_state.in_units_of_data(images, config)

  rows = sharding.batch_sharding(mesh)
  compiled = compilation.jit(sample, out_shardings=rows)
  _, schedule = train_state.make_sampler(config, None, num_timesteps)
  most = sampling.max_batch_size(schedule.num_timesteps, config.image_shape, config.generator.nz)  # on each device

  def local(ema_params: Any, seed: int, first: int, count: int) -> np.ndarray:
    indices = _local_numbers(first, count).astype(np.int32)
    devices = mesh.size // jax.process_count()
    parts = -(-len(indices) // (most * devices))
    size = -(-len(indices) // (parts * devices)) * devices  # the same for all parts, so that one program suffices
    found = []
    for part in (indices[0] + np.arange(parts * size, dtype=np.int32)).reshape(parts, size):
      arrays = [part, *(given.conditions_and_labels(part, conditional) if given else ())]
      arrays = [jax.make_array_from_process_local_data(rows, array) for array in arrays]
      found.append(sharding.local_rows(compiled(ema_params, np.uint32(seed), *arrays)))
    return np.concatenate(found)[:len(indices)]

  def requested(seed: int, num: int) -> np.ndarray:
    if given:
      return given.labels(num)
    return np.asarray(jax.jit(lambda: labels.draw(seed, np.arange(num, dtype=np.int32), config.generator))())

  default_seed = seed
  return lambda ema_params, name, seed=default_seed: ImageSet(
      name, '', None, config.image_shape, functools.partial(local, ema_params, seed),
      functools.partial(requested, seed) if conditional else None)


def dataset_images(source: sources.Source, data_config: DataConfig) -> ImageSet:
  """The images of a source in stored order, not flipped; stacks as the run draws them."""
  infinite = data_config.stack == 3 and not data_config.num_stacks
  height, width, _ = source.image_shape
  shape = (height, width, data_config.num_channels)
  kind = f' stack {data_config.stack} {data_config.num_stacks}' if data_config.stack == 3 else ''
  name, fingerprint = f'{source.name}{kind}', source.checksum and f'{source.checksum}{kind} {shape}'
  take = functools.partial(pipeline.stored_images, source, data_config)
  if infinite:
    return ImageSet(name, fingerprint, None, shape, lambda first, count: take(_local_numbers(first, count)))
  return _finite(name, fingerprint, pipeline.epoch_size(source, data_config), shape, take)


def array_images(images: np.ndarray, name: str) -> ImageSet:
  """A set of images [n, H, W, C] uint8 that every process has."""
  return _finite(name, '', len(images), images.shape[1:], lambda numbers: images[numbers])


def file_images(path: str, num_channels: int = 3) -> ImageSet:
  """Reads a folder or zip of square images of one size, or an npz with uint8 `images`; converts to 1 or 3 channels.

  Raises:
    DataError: the path has another format, is empty, or has unusable images.
  """
  kind = 'folder' if os.path.isdir(path) else 'zip' if path.endswith('.zip') else 'npz'
  try:
    reader = open_reader(DataConfig(name=kind, path=path))
    size = _size_of_first(reader)
    # Prepared in a temporary folder; a mapped file stays readable after its deletion.
    with tempfile.TemporaryDirectory() as cache:
      data_config = DataConfig(name=kind, path=path, image_size=size, num_channels=num_channels, cache_dir=cache)
      source = sources.load_source(data_config, log=lambda text: None)
  except PathError as error:
    raise DataError(error.problem) from error
  return dataset_images(source, data_config)._replace(name=path)


def read_reference(path: str, num_channels: int) -> ImageSet | Statistics:
  """Reads published statistics from a .npy or an .npz without `images`, otherwise images (`file_images`)."""
  is_statistics = path.endswith(('.npy', '.npz')) and not _holds_images(path)
  return statistics.read(path) if is_statistics else file_images(path, num_channels)


def _holds_images(path: str) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return 'images.npy' in archive.namelist()
  except Exception:  # absent or damaged, which `statistics.read` reports; zipfile raises many types
    return False


def subset(images: ImageSet, num: int) -> ImageSet:
  """A fixed random subset of `num` images; the set itself if it is infinite or not larger.

  Folders and archives are often sorted by class, so their first images would not cover all classes.
  """
  if images.size is None or num >= images.size:
    return images
  # Sorted, because consecutive images are often close on disk.
  chosen = np.sort(pipeline.permutation(0, pipeline.SUBSET, 0, images.size)[:num])
  requested = images.requested_labels and (lambda number: images.requested_labels(images.size)[chosen[:number]])
  fingerprint = images.fingerprint and f'{images.fingerprint} subset {num}'
  return _finite(images.name, fingerprint, num, images.shape, lambda numbers: images.take(chosen[numbers]), requested)


def _finite(
    name: str, fingerprint: str, size: int, shape: tuple[int, int, int], take: Callable[[np.ndarray], np.ndarray],
    requested_labels: Callable[[int], np.ndarray] | None = None) -> ImageSet:
  """The set of `size` images that `take` reads."""
  rows = lambda first, count: take(np.minimum(_local_numbers(first, count), size - 1))
  return ImageSet(name, fingerprint, size, shape, rows, requested_labels, take)


def _local_numbers(first: int, count: int) -> np.ndarray:
  """This process's block of the indices first … first + count - 1."""
  return np.arange(first, first + count)[pipeline.process_rows(count, jax.process_index(), jax.process_count())]


def _size_of_first(reader: readers.Reader) -> int:
  """H = W of the first image of a reader."""
  try:
    item, _ = reader.read(0)
    height, width = item.shape[:2] if isinstance(item, np.ndarray) else images_lib.size(item)
  except images_lib.BadImage as error:
    raise DataError(f'{reader.title}: {reader.name(0)} {error}') from error
  if height != width:
    raise DataError(f'{reader.title}: {reader.name(0)} is {height}x{width}; use square images')
  return height


def compress_jpeg(images: ImageSet | Statistics | None, quality: int = 75) -> ImageSet | None:
  """The same images after JPEG compression, as in the original's evaluation script.

  Raises:
    ConfigError: `images` are statistics, which cannot be compressed.
  """
  if isinstance(images, Statistics):
    raise ConfigError('--jpeg: the reference is a file of statistics; use images, so that both sides are compressed')
  if images is None:
    return None

  def compress(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format='JPEG', quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)

  def compressed(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *which: np.stack([compress(image) for image in read(*which)])

  fingerprint = images.fingerprint and f'{images.fingerprint} jpeg {quality}'
  return images._replace(
      name=f'{images.name} (JPEG {quality})', fingerprint=fingerprint, rows=compressed(images.rows),
      take=images.take and compressed(images.take))


def check_same_shape(images: ImageSet, reference: ImageSet) -> None:
  """Raises ConfigError unless both have the same H, W and C."""
  if images.shape != reference.shape:
    found, expected = ('x'.join(map(str, shape)) for shape in (images.shape, reference.shape))
    raise ConfigError(f'{images.name} has images of {found}, but {reference.name} has {expected}; use the same size '
                      'and channels')
