"""Readers of npz and LMDB."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
import threading
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ddgan_jax.data import images
from ddgan_jax.data.readers import PathError, Reader, stamp

_UNPACKING = threading.Lock()


class NpzReader(Reader):
  """An npz with uint8 `images` [N, H, W, C] (C = 1, 3 or 4) or [N, H, W], and optional integer `labels` [N].

  Args:
    path: the file.
    array: name of the array of images.
    dtypes: the accepted types; others than uint8 are measurements, with any number of channels, read by `values`.
  """

  def __init__(self, path: str, array: str = 'images', dtypes: tuple[str, ...] = ('uint8',)):
    self.title = self._path = path
    self._name = array
    try:
      self._headers = _npz_headers(path, array)
    except Exception as e:  # zipfile and its decompressors fail in many ways
      raise PathError(f'{path} cannot be read as npz ({e})') from e
    if array not in self._headers:
      raise PathError(f"{path} has no array '{array}' (it has {', '.join(self._headers) or 'none'})")
    shape, dtype = self._headers[array]
    is_8_bit = dtypes == ('uint8',)
    if dtype.name not in dtypes:
      field = 'data.value_range' if array == 'images' else 'data.pair_range'
      hint = f'uint8 (0 to 255), or set {field}' if is_8_bit else ', '.join(dtypes[:-1]) + f' or {dtypes[-1]}'
      raise PathError(f"'{array}' in {path} is {dtype}; use {hint}")
    if is_8_bit and (len(shape) < 3 or shape[3:] not in ((), (1,), (3,), (4,))):
      raise PathError(f"'{array}' in {path} is {list(shape)}; use [N, H, W] or [N, H, W, C] with C = 1, 3 or 4")
    if len(shape) not in (3, 4):
      raise PathError(f"'{array}' in {path} is {list(shape)}; use [N, H, W] or [N, H, W, C]")
    if 0 in shape:
      raise PathError(f"'{array}' in {path} is empty ({list(shape)})")
    self._len = shape[0]
    self._labels = None
    if 'labels' in self._headers and array == 'images':
      label_shape, label_dtype = self._headers['labels']
      if label_shape != shape[:1] or not np.issubdtype(label_dtype, np.integer):
        raise PathError(f"'labels' in {path} is {label_dtype}{list(label_shape)}; use integers [{self._len}]")
      self._labels = self._array('labels')
      least, most = int(self._labels.min()), int(self._labels.max())
      if least < 0 or most >= 2**31:
        raise PathError(f"'labels' in {path} are {least} … {most}; use 0 … 2³¹ - 1")
      self.has_labels = True
      self.num_classes = most + 1

  def _array(self, name: str) -> np.ndarray:
    shape, dtype = self._headers[name]
    needed, available = math.prod(shape) * dtype.itemsize, _available_memory()
    if needed > available:
      raise PathError(
          f'{name!r} in {self._path} needs {needed / 2**20:,.0f} MiB of memory, but only '
          f'{available / 2**20:,.0f} MiB are available; use a folder, a zip or an LMDB of images')
    try:
      with np.load(self._path) as file:
        return file[name]
    except Exception as e:  # zipfile and its decompressors fail in many ways
      raise PathError(f'{self._path} cannot be read as npz ({e})') from e

  @functools.cached_property
  def _images(self) -> np.ndarray:
    # Read lazily, so that a prepared set is not unpacked again.
    images_ = self._array(self._name)
    return images_ if images_.ndim == 4 else images_[..., None]

  def values(self) -> tuple[np.ndarray, np.ndarray | None]:
    """All images [N, H, W, C], and the labels [N] or None."""
    return self._images, self._labels

  def __len__(self) -> int:
    return self._len

  def name(self, i: int) -> str:
    return f'{self._name}[{i}]'

  def read(self, i: int) -> tuple[np.ndarray, int]:
    with _UNPACKING:  # or each thread would unpack its own copy
      image = self._images[i]
    return image, 0 if self._labels is None else int(self._labels[i])

  def fingerprint(self) -> str:
    return stamp(self._path)


def _npz_headers(path: str, array: str) -> dict[str, tuple[tuple[int, ...], np.dtype] | None]:
  """Array name → (shape, dtype) for `array` and `labels`, None for others; does not read the arrays."""
  with zipfile.ZipFile(path) as archive:
    headers = dict.fromkeys(name.removesuffix('.npy') for name in archive.namelist())
    for name in headers.keys() & {array, 'labels'}:
      with archive.open(f'{name}.npy') as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        headers[name] = shape, dtype
  return headers


def _available_memory() -> float:
  """The memory limit of this process in bytes: that of the machine or of its container."""
  limits = [math.inf]
  with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
    limits.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
  for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
    with contextlib.suppress(OSError, ValueError), open(path) as file:  # ValueError: `max`
      limits.append(int(file.read()))
  return min(limits)


class LmdbReader(Reader):
  """An LMDB of images: encoded, under any keys, as LSUN publishes them, or raw square RGB.

  Raw RGB bytes under decimal keys ('0', '1', …) are the format of NVAE's CelebA-HQ recipe, which the authors of DDGAN
  followed.
  """

  def __init__(self, path: str):
    import lmdb

    self.title = self._path = path
    try:
      self._stamp = stamp(self._file())  # once, so that the environment stays the same if the file is touched later
      env = self._open()
      # LMDB maps the file, and a truncated one would end the process with SIGBUS.
      file = self._file()
      whole = (env.info()['last_pgno'] + 1) * env.stat()['psize']
      if os.path.getsize(file) < whole:
        raise PathError(f'{file} is truncated (it has {os.path.getsize(file):,} of {whole:,} bytes); copy it again')
      with env.begin() as transaction:
        self._keys = list(transaction.cursor().iternext(keys=True, values=False))
    except (lmdb.Error, OSError) as e:
      raise PathError(f'{path} cannot be read as LMDB ({e})') from e
    if not self._keys:
      raise PathError(f'{path} contains no image')
    if all(key.isdigit() for key in self._keys):
      self._keys.sort(key=int)
    # The values are raw if most have the size of the same RGB square and are not image files.
    sample = [self._value(i) for i in np.unique(np.linspace(0, len(self) - 1, 17).astype(int))]
    (size, count), = collections.Counter(map(len, sample)).most_common(1)
    side = math.isqrt(size // 3)
    typical = next(value for value in sample if len(value) == size)
    is_raw = 2 * count > len(sample) and size == 3 * side * side > 0 and not images.is_encoded(typical)
    self._side = side if is_raw else 0

  def _open(self) -> Any:
    with _OPENING:
      return _open_lmdb(os.path.realpath(self._file()), self._stamp, os.getpid())

  def _file(self) -> str:
    return os.path.join(self._path, 'data.mdb') if os.path.isdir(self._path) else self._path

  def _value(self, i: int) -> bytes:
    import lmdb

    try:
      with self._open().begin() as transaction:
        return transaction.get(self._keys[i])
    except lmdb.Error as e:
      raise images.BadImage(f'cannot be read ({e})') from e

  def __len__(self) -> int:
    return len(self._keys)

  def name(self, i: int) -> str:
    return f'key {self._keys[i].decode("ascii", "backslashreplace")}'

  def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
    value = self._value(i)
    if not self._side:
      return value, 0
    if len(value) != 3 * self._side**2:
      raise images.BadImage(f'has {len(value):,} bytes, but the others have {3 * self._side**2:,} (raw RGB)')
    return np.frombuffer(value, np.uint8).reshape(self._side, self._side, 3), 0

  def fingerprint(self) -> str:
    return self._stamp


_OPENING = threading.Lock()  # or two threads that miss the cache would both open the file


@functools.lru_cache(maxsize=4)
def _open_lmdb(path: str, stamp: str, process: int) -> Any:
  """One environment per file and process: LMDB allows no second one, nor its use across a fork."""
  import lmdb

  return lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False)
