"""Preparation: decodes and checks every image of a reader once, and stores them as one memory-mapped uint8 array.

A prepared set is a folder under `data.cache_dir`: `images.npy` [N, H, W, C] uint8, `labels.npy` [N] int32 and
`meta.json`. It is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import filelock
import numpy as np
from numpy.lib import format as npy

from ddgan_jax.config import DataConfig
from ddgan_jax.data import images
from ddgan_jax.data.readers import DataError, Reader, stamp
from ddgan_jax.utils import files

# Increased when the same config and data would give other files; sets of another version are prepared again.
VERSION = 1
_HEADER = 128  # bytes before the pixels in images.npy
_MAX_BAD = 20  # without data.skip_bad, the check stops after so many bad images


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared set on disk.

  Attributes:
    folder: its folder.
    count: N, the number of usable images.
    shape: (H, W, C).
    has_pixels: whether images.npy exists (data.cache = 'array').
    has_labels, num_classes, class_names: see `readers.Reader`.
    skipped: (name, reason) of each image that data.skip_bad left out.
    notes: remarks of the reader.
    checksum: CRC-32 of all pixels and of all labels, as 16 hexadecimal digits; equal for equal sets.
  """

  folder: pathlib.Path
  count: int
  shape: tuple[int, int, int]
  has_pixels: bool
  has_labels: bool
  num_classes: int | None
  class_names: tuple[str, ...] | None
  skipped: tuple[tuple[str, str], ...]
  notes: tuple[str, ...]
  checksum: str

  def images(self, in_memory: bool) -> np.ndarray:
    """[N, H, W, C] uint8, in memory or memory-mapped."""
    return np.load(self.folder / 'images.npy', mmap_mode=None if in_memory else 'r')

  def labels(self) -> np.ndarray:
    """[N] int32, all 0 without labels."""
    return np.load(self.folder / 'labels.npy')

  def kept(self) -> np.ndarray:
    """[N] int64, the reader's index of each usable image; stored only without pixels."""
    return np.load(self.folder / 'kept.npy')


def prepared_folder(data_config: DataConfig) -> pathlib.Path:
  """The folder of the prepared set of these fields."""
  identity = _cache_key(data_config)
  key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
  name = re.sub(r'\W+', '_', identity['path'].rstrip('/').rpartition('/')[2] or data_config.name)[:40]
  size = data_config.image_size
  return cache_folder(data_config) / f'{name}-{size}x{size}x{images.channels(data_config)}-{key}'


def cache_folder(data_config: DataConfig) -> pathlib.Path:
  """The folder of all prepared sets. Raises DataError for a bucket."""
  if '://' in data_config.cache_dir:
    raise DataError(f'data.cache_dir is {data_config.cache_dir!r}; use a local folder')
  return pathlib.Path(data_config.cache_dir or files.cache_dir('data')).expanduser()


def find(data_config: DataConfig, fingerprint: str | None = None) -> Prepared | None:
  """The prepared set of these fields, or None unless it is complete, of this version and of this fingerprint.

  Without a fingerprint, only the file that its reader watches must be unchanged or gone.

  Raises:
    DataError: the set was prepared with skipped images, but data.skip_bad is False.
  """
  folder = prepared_folder(data_config)
  try:
    meta = json.loads((folder / 'meta.json').read_text())
    fields = [field.name for field in dataclasses.fields(Prepared)[1:]]
    prepared = Prepared(folder, **{name: _to_tuples(meta[name]) for name in fields})
    is_current = fingerprint == meta['fingerprint'] if fingerprint is not None else (
        not os.path.exists(meta['watched']) or stamp(meta['watched']) == meta['watched_stamp'])
    if meta['version'] != VERSION or not is_current or not _is_complete(prepared):
      return None
  except (OSError, EOFError, ValueError, KeyError, TypeError):  # absent, damaged, or another meta.json
    return None
  if prepared.skipped and not data_config.skip_bad:
    total = prepared.count + len(prepared.skipped)
    raise DataError(_bad_images_message(prepared.skipped, f'{total:,}', meta['title'], '', folder / 'meta.json'))
  return prepared


def prepare(
    reader: Reader, data_config: DataConfig, log: Callable[[str], None], overwrite: bool = False
) -> Prepared:
  """Returns the prepared set of `reader`; writes it if it is missing, damaged or out of date, or if `overwrite`.

  Several processes may call this at once: one writes, the others wait.

  Raises:
    DataError: images are unusable and data.skip_bad is False (the message lists the first of them), none is usable, or
      the disk is full.
  """
  fingerprint = reader.fingerprint()
  if not overwrite and (prepared := find(data_config, fingerprint)):
    return prepared
  folder = prepared_folder(data_config)
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f'{folder}.lock')
    try:
      lock.acquire(timeout=0.1)
    except filelock.Timeout:
      log(f'Waiting for another process that is preparing {reader.title}.')
      lock.acquire()
  except OSError as e:
    raise DataError(
        f'{folder.parent} cannot be written to ({e.strerror}); use another --config.data.cache_dir') from e
  try:
    if not overwrite:
      if prepared := find(data_config, fingerprint):  # another process has written it
        return prepared
      if folder.exists():
        log(f'{folder} is damaged or no longer matches the data; preparing it again.')
    try:
      _write(reader, data_config, fingerprint, folder)
    except OSError as e:
      raise DataError(f'{e.filename or folder}: {e.strerror or e}; free some space, or use another '
                      '--config.data.cache_dir') from e
    prepared = find(data_config, fingerprint)
    assert prepared, folder
    return prepared
  finally:
    lock.release()


def _cache_key(data_config: DataConfig) -> dict[str, Any]:
  if data_config.path:
    path, data_dir = os.path.realpath(os.path.expanduser(data_config.path)), ''
  else:
    path = data_config.name.replace('/', '_')
    data_dir = data_config.data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    data_dir = os.path.realpath(os.path.expanduser(data_dir))
  return {
      'name': data_config.name, 'path': path, 'data_dir': data_dir,
      'split': data_config.split, 'image_size': data_config.image_size, 'channels': images.channels(data_config),
      'resize': data_config.resize, 'cache': data_config.cache}


def _to_tuples(value: Any) -> Any:
  return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _is_complete(prepared: Prepared) -> bool:
  """Whether the arrays have the expected shapes."""
  if prepared.has_pixels:
    pixels = prepared.images(in_memory=False)
    kept_all = pixels.shape == (prepared.count, *prepared.shape) and pixels.dtype == np.uint8
  else:
    kept_all = len(prepared.kept()) == prepared.count
  return kept_all and len(prepared.labels()) == prepared.count


def _bad_images_message(
    bad: Sequence[tuple[str, str]], among: str, title: str, hint: str, file: pathlib.Path | None = None) -> str:
  first = '; '.join(f'{name} {reason}' for name, reason in bad[:5])
  more = f'; and {len(bad) - 5:,} more' if len(bad) > 5 else ''
  listed = f' (all are listed in {file})' if file else ''
  advice = f'Use {hint} for some; otherwise fix' if hint else 'Fix'
  return printable(
      f'{len(bad):,} of {among} images of {title} cannot be used: {first}{more}{listed}. {advice} or remove '
      'them, or set --config.data.skip_bad=True to leave them out')


def printable(text: str) -> str:
  """Escapes file names that are not Unicode."""
  return text.encode('utf-8', 'backslashreplace').decode()


def _write(reader: Reader, data_config: DataConfig, fingerprint: str, folder: pathlib.Path) -> None:
  """Writes `<folder>.partial` and renames it to `folder`; a failure leaves nothing behind."""
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)  # left by a call that was killed
  partial.mkdir(parents=True)
  try:
    meta = _write_arrays(reader, data_config, partial)
    meta |= {'version': VERSION, 'fingerprint': fingerprint, 'config': _cache_key(data_config)}
    (partial / 'meta.json').write_text(json.dumps(meta, indent=1))
    _sync(partial)
    if folder.exists():
      shutil.rmtree(folder)
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(reader: Reader, data_config: DataConfig, folder: pathlib.Path) -> dict[str, Any]:
  """Writes the arrays of a prepared set; returns their part of meta.json. Raises DataError for bad images."""
  shape = (data_config.image_size, data_config.image_size, images.channels(data_config))
  has_pixels = data_config.cache == 'array'
  total, bad, hint = len(reader), list(reader.bad), ''
  if has_pixels:
    _check_space(folder, total, shape)
  kept, labels, pixels_crc = [], [], 0
  with (folder / 'images.npy').open('wb') if has_pixels else contextlib.nullcontext() as file:
    if has_pixels:
      file.seek(_HEADER)
    for numbers, items in _decoded(reader, data_config, shape):
      good = [(i, *item) for i, item in zip(numbers, items) if not isinstance(item, images.BadImage)]
      for i, item in zip(numbers, items):
        if isinstance(item, images.BadImage):
          bad.append((reader.name(i), str(item)))
          hint = hint or item.hint
      if good:
        pixels = np.stack([image for _, image, _ in good])
        pixels_crc = zlib.crc32(pixels, pixels_crc)
        if has_pixels:
          file.write(pixels)
      kept += [i for i, _, _ in good]
      labels += [label for _, _, label in good]
      if len(bad) >= _MAX_BAD and not data_config.skip_bad:
        break
    if has_pixels:
      file.seek(0)
      npy.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': (len(kept), *shape)})
      assert file.tell() == _HEADER
  if bad and not data_config.skip_bad:
    checked, total = numbers.stop + len(reader.bad), total + len(reader.bad)
    among = f'{total:,}' if checked == total else f'the first {checked:,} of {total:,}'
    raise DataError(_bad_images_message(bad, among, reader.title, hint))
  if not kept:
    first = '; '.join(f'{name} {reason}' for name, reason in bad[:3])
    raise DataError(printable(f'{reader.title} has no usable image among {total:,}: {first}'))
  np.save(folder / 'labels.npy', np.array(labels, np.int32))
  if not has_pixels:
    np.save(folder / 'kept.npy', np.array(kept, np.int64))
  return {
      'title': reader.title, 'count': len(kept), 'shape': shape, 'has_pixels': has_pixels,
      'has_labels': reader.has_labels, 'num_classes': reader.num_classes, 'class_names': reader.class_names,
      'skipped': bad, 'notes': list(reader.notes),
      'checksum': f'{pixels_crc:08x}{zlib.crc32(np.array(labels, np.int32)):08x}',
      'watched': reader.watched, 'watched_stamp': stamp(reader.watched) if reader.watched else ''}


def _check_space(folder: pathlib.Path, total: int, shape: tuple[int, int, int]) -> None:
  needed, free = total * math.prod(shape), shutil.disk_usage(folder).free
  if free < needed:
    raise DataError(
        f'{folder.parent} has {free / 2**20:,.0f} MiB of free space, but {total:,} images of '
        f'{"x".join(map(str, shape))} need {needed / 2**20:,.0f} MiB; use another --config.data.cache_dir, or '
        '--config.data.cache=none')


def _decoded(
    reader: Reader, data_config: DataConfig, shape: tuple[int, int, int]
) -> Iterator[tuple[range, list[tuple[np.ndarray, int] | images.BadImage]]]:
  """Decodes on all cores; yields chunks of (image, label) or BadImage, in order."""
  import tqdm

  # Pillow releases the GIL while it decodes and resizes.
  workers = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  chunk = max(16, 8 * workers, min(1024, 2**24 // math.prod(shape)))
  read = functools.partial(_read, reader, data_config)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool, tqdm.tqdm(
      total=len(reader), desc=f'Preparing {reader.title}', unit=' images', delay=1.0, mininterval=0.5,
      dynamic_ncols=True) as bar:
    for first in range(0, len(reader), chunk):
      numbers = range(first, min(first + chunk, len(reader)))
      part = max(4, min(32, -(-len(numbers) // (2 * workers))))
      parts = [numbers[k:k + part] for k in range(0, len(numbers), part)]
      yield numbers, [item for part in pool.map(read, parts) for item in part]
      bar.update(len(numbers))


def _read(
    reader: Reader, data_config: DataConfig, numbers: range) -> list[tuple[np.ndarray, int] | images.BadImage]:
  found = []
  for item in reader.read_many(numbers):
    if not isinstance(item, images.BadImage):
      try:
        item = images.decode(item[0], data_config), item[1]
      except images.BadImage as e:
        item = e
    found.append(item)
  return found


def _sync(folder: pathlib.Path) -> None:
  """Waits until the files of `folder` are on the disk."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
