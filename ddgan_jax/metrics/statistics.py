"""Mean and covariance of a reference set's features: kept once computed, and read from published files."""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy

from ddgan_jax.config import UserError
from ddgan_jax.utils import files, untrusted


class StatisticsError(UserError):
  """A file of statistics cannot be used."""


class Statistics(NamedTuple):
  """A Gaussian fitted to features.

  Attributes:
    name: of the set.
    mean: [D] float64.
    covariance: [D, D] float64.
    count: images that it was fitted to, or None where a file does not say.
  """

  name: str
  mean: np.ndarray
  covariance: np.ndarray
  count: int | None


def read(path: str, dimension: int = 2048) -> Statistics:
  """Reads `mu` and `sigma` from an `.npz`, or from a `.npy` that holds a dict of them as the original's files do.

  Raises:
    StatisticsError: the file is something else, or its features are not `dimension` numbers each.
  """
  if not os.path.isfile(path):
    raise StatisticsError(f'{path}: no such file; statistics are an .npz or .npy with mu and sigma')
  try:
    found = _read_npz(path, dimension) if path.endswith('.npz') else _read_dict(path)
    mean, covariance = (np.asarray(found[name], np.float64) for name in ('mu', 'sigma'))
    count = int(found['n']) if 'n' in found else None
  except StatisticsError:
    raise
  except Exception as error:  # zipfile, its decompressors and pickles fail in many ways
    raise StatisticsError(f'{path}: holds no mu and sigma that can be read ({error})') from error
  _check_shapes(path, mean.shape, covariance.shape, dimension)
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise StatisticsError(f'{path}: mu or sigma is not finite')
  return Statistics(path, mean, covariance, count)


def write(path: str | os.PathLike, statistics: Statistics) -> None:
  """Writes an `.npz` with mu, sigma and n, which `read` and pytorch-fid understand; whole or not at all."""
  save_npz(pathlib.Path(path), _arrays(statistics))


def _arrays(statistics: Statistics) -> dict[str, Any]:
  return {'mu': statistics.mean, 'sigma': statistics.covariance, 'n': statistics.count, 'name': statistics.name}


def save_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes an `.npz`, whole or not at all. Raises OSError."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path, 'wb') as file:
    np.savez(file, **arrays)


def cache_npz(path: pathlib.Path, arrays: Mapping[str, Any], say: Callable[[str], None]) -> None:
  """`save_npz` into a cache: a failed write is reported and not raised, since the next run computes it again."""
  try:
    save_npz(path, arrays)
  except OSError as error:
    say(f'{path}: cannot be cached ({error.strerror or error}); the next run computes it again.')


def digest(arrays: Any) -> str:
  """16 hexadecimal digits of a pytree's numbers, for cache keys."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(arrays):
    found.update(np.ascontiguousarray(leaf).data)
  return found.hexdigest()[:16]


def load_cached(key: str) -> Statistics | None:
  """What `store` kept under `key`; None if nothing, or if the key is empty."""
  try:
    with np.load(_path(key)) as file:
      return Statistics(str(file['name']), file['mu'], file['sigma'], int(file['n']))
  except Exception:  # absent or damaged, and zipfile fails in many ways
    return None


def store(key: str, statistics: Statistics, say: Callable[[str], None] = print) -> None:
  """Keeps statistics for the next run, from the first process; nothing for an empty key.

  A cache that cannot be written to is reported by `say` and is not an error.
  """
  if key and jax.process_index() == 0:
    cache_npz(_path(key), _arrays(statistics), say)


def _path(key: str) -> pathlib.Path:
  name = hashlib.sha256(key.encode()).hexdigest()[:16] if key else '-'
  return files.cache_dir('statistics') / f'{name}.npz'


def _check_shapes(path: str, mean: tuple[int, ...], covariance: tuple[int, ...], dimension: int) -> None:
  if mean != (dimension,) or covariance != (dimension, dimension):
    raise StatisticsError(f'{path}: mu is {list(mean)} and sigma {list(covariance)}, must be [{dimension}] '
                          f'and [{dimension}, {dimension}]')


def _read_npz(path: str, dimension: int) -> dict[str, np.ndarray]:
  """mu, sigma and n, read once their shapes are known to be right."""
  with zipfile.ZipFile(path) as archive:
    names = ['mu', 'sigma', *(['n'] if 'n.npy' in archive.namelist() else [])]
    shapes, dtypes = zip(*(untrusted.array_header(archive, name) for name in names))
    _check_shapes(path, *shapes[:2], dimension)
    for name, shape, dtype in zip(names, shapes, dtypes):
      if dtype.kind not in 'fiu' or (name == 'n' and math.prod(shape) != 1):
        raise ValueError(f'{name} is {dtype}{list(shape)}')
    return {name: untrusted.read_array(archive, name) for name in names}


class _Array:
  """A pickled array, built from its bytes on request; NumPy would allocate any shape that the pickle names."""

  def __init__(self, *unused):
    self._state = None

  def __setstate__(self, state):
    self._state = state

  def value(self) -> Any:
    """The array, or the object of an array of one object."""
    _, shape, dtype, fortran, data = self._state
    if dtype.hasobject and shape == ():
      return data[0]
    return np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')


class _ArraysOnly(pickle.Unpickler):
  """A dict of arrays needs these names; a pickle may otherwise run anything.

  Args:
    file: of the pickle.
    length: bytes of the file, a bound for all text that the pickle encodes.
  """

  def __init__(self, file: BinaryIO, length: int):
    super().__init__(file)
    self._left = length

  def find_class(self, module: str, name: str):
    known = {'numpy.ndarray': _Array, 'numpy.dtype': np.dtype, '_codecs.encode': self._encode,
             **{f'numpy.{core}.multiarray._reconstruct': _Array for core in ('core', '_core')},
             **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')}}
    if f'{module}.{name}' not in known:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}, which arrays do not need')
    return known[f'{module}.{name}']

  def _encode(self, text: str, encoding: str) -> bytes:
    self._left -= len(text)
    if self._left < 0:
      raise pickle.UnpicklingError('it encodes more text than it holds')
    return text.encode(encoding)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
  return np.frombuffer(data, dtype)[0]


def _read_dict(path: str) -> dict:
  with open(path, 'rb') as file:
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if not dtype.hasobject or shape != ():
      raise ValueError(f'it is an array {dtype}{list(shape)}')
    length = os.path.getsize(path)
    untrusted.check_pickle(file, length)
    found = _ArraysOnly(file, length).load()
  found = found.value() if isinstance(found, _Array) else found
  if not isinstance(found, dict):
    raise ValueError(f'it is a {type(found).__name__}')
  items = {name: found[name] for name in ('mu', 'sigma', 'n') if name in found}
  return {name: item.value() if isinstance(item, _Array) else item for name, item in items.items()}
