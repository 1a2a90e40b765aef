"""Mean and covariance of a reference set's features: cached, and read from published files."""

from __future__ import annotations

import codecs
import hashlib
import os
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy

from ddgan_jax.config import UserError
from ddgan_jax.utils import files


class StatisticsError(UserError):
  """A file of statistics cannot be used."""


_FIELDS = ('mu', 'sigma', 'n', 'feature_name')  # of a file; others are not read
FID_INCEPTION = 'FID Inception'
# Features whose statistics can be written and read → (the metric that compares them, their number).
FEATURES = {
    FID_INCEPTION: ('fid', 2048), 'FID Inception, clean-fid': ('fid_clean', 2048),
    'DINOv2 vitl14': ('fd_dinov2', 1024), 'DINOv2 vitb14': ('fd_dinov2', 768)}


class Statistics(NamedTuple):
  """A Gaussian fitted to features.

  Attributes:
    name: name of the set.
    mean: [D] float64.
    covariance: [D, D] float64.
    count: number of images, or None if unknown.
    features: name of the network, as in tables; in a file one of `FEATURES`.
  """

  name: str
  mean: np.ndarray
  covariance: np.ndarray
  count: int | None
  features: str = FID_INCEPTION


def read(path: str, dimension: int | None = None) -> Statistics:
  """Reads `mu` and `sigma` from an `.npz`, or from a `.npy` of a dict, as the original uses.

  Published files do not name their features, which are then those of FID.

  Raises:
    StatisticsError: the file has another format, unknown features, or another number of features than `dimension`, by
      default that of its features.
  """
  if not os.path.isfile(path):
    raise StatisticsError(f'{path} does not exist; use an .npz or .npy with mu and sigma')
  try:
    found = _read_npz(path) if path.endswith('.npz') else _read_dict(path)
    mean, covariance = (np.asarray(found[name], np.float64) for name in ('mu', 'sigma'))
    count = int(found['n']) if 'n' in found else None
    features = str(found.get('feature_name', FID_INCEPTION))
  except Exception as error:  # zipfile, its decompressors and pickle raise many types
    raise StatisticsError(f'{path} has no readable mu and sigma ({error})') from error
  if features not in FEATURES:
    raise StatisticsError(f'{path}: feature_name is {features!r}; use one of {", ".join(FEATURES)}')
  dimension = dimension or FEATURES[features][1]
  if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
    raise StatisticsError(f'{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}; use [{dimension}] and '
                          f'[{dimension}, {dimension}]')
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise StatisticsError(f'{path}: mu or sigma contains NaN or infinity')
  return Statistics(path, mean, covariance, count, features)


def write(path: str | os.PathLike, statistics: Statistics) -> None:
  """Atomically writes an `.npz` with mu, sigma, n and feature_name, for `read` and pytorch-fid."""
  save_npz(pathlib.Path(path), _arrays(statistics))


def _arrays(statistics: Statistics) -> dict[str, Any]:
  return {'mu': statistics.mean, 'sigma': statistics.covariance, 'n': statistics.count, 'name': statistics.name,
          'feature_name': statistics.features}


def save_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Atomically writes an `.npz`. Raises OSError."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path, 'wb') as file:
    np.savez(file, **arrays)


def cache_npz(path: pathlib.Path, arrays: Mapping[str, Any], log: Callable[[str], None]) -> None:
  """Like `save_npz`, for a cache: a failed write is only logged, because the next run computes the arrays again."""
  try:
    save_npz(path, arrays)
  except OSError as error:
    log(f'{path}: cannot be cached ({error.strerror or error}); the next run computes it again.')


def digest(arrays: Any) -> str:
  """A hash of a pytree of arrays for cache keys, 16 hexadecimal digits."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(arrays):
    found.update(np.ascontiguousarray(leaf).data)
  return found.hexdigest()[:16]


def load_cached(key: str) -> Statistics | None:
  """The statistics that `store` saved under `key`, or None."""
  try:
    with np.load(_path(key)) as file:
      return Statistics(str(file['name']), file['mu'], file['sigma'], int(file['n']))
  except Exception:  # absent or damaged, for which zipfile raises many types
    return None


def store(key: str, statistics: Statistics, log: Callable[[str], None] = print) -> None:
  """Caches statistics, on process 0 only; does nothing for an empty key."""
  if key and jax.process_index() == 0:
    cache_npz(_path(key), _arrays(statistics), log)


def _path(key: str) -> pathlib.Path:
  name = hashlib.sha256(key.encode()).hexdigest()[:16] if key else '-'
  return files.cache_dir('statistics') / f'{name}.npz'


def _read_npz(path: str) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in _FIELDS if name in file}


class _Dtype:
  """Replaces a pickled dtype."""

  def __init__(self, name: str, *unused):
    self.name, self.order = name, '='

  def __setstate__(self, state):
    self.order = state[1]


class _Array:
  """Replaces a pickled array, because NumPy would accept pointers, flags and any shape from the pickle."""

  def __init__(self, *unused):
    pass

  def __setstate__(self, state):
    _, self.shape, self.dtype, self.fortran, self.data = state

  def numbers(self) -> np.ndarray:
    if not re.fullmatch(r'[fiu]\d', self.dtype.name):
      raise ValueError(f'an array has the dtype {self.dtype.name}')
    dtype = np.dtype(self.dtype.name).newbyteorder(self.dtype.order)
    return np.frombuffer(self.data, dtype).reshape(self.shape, order='F' if self.fortran else 'C')


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
  scalar = _Array()
  scalar.__setstate__((1, (), dtype, False, data))
  return scalar


class _ArraysOnly(pickle.Unpickler):
  """Allows only the names that a dict of arrays needs, because a pickle can run arbitrary code."""

  _KNOWN = {
      'numpy.ndarray': _Array, 'numpy.dtype': _Dtype, '_codecs.encode': codecs.encode,
      **{f'numpy.{core}.multiarray.{name}': stand_in
         for core in ('core', '_core') for name, stand_in in (('_reconstruct', _Array), ('scalar', _scalar))}}

  def find_class(self, module: str, name: str):
    if f'{module}.{name}' not in self._KNOWN:
      raise pickle.UnpicklingError(f'it refers to {module}.{name}, which arrays do not need')
    return self._KNOWN[f'{module}.{name}']


def _read_dict(path: str) -> dict[str, Any]:
  """Reads a dict that `np.save` wrote as an array of one object."""
  with open(path, 'rb') as file:
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    if not dtype.hasobject or shape != ():
      raise ValueError(f'it is an array {dtype}{list(shape)}')
    found = _ArraysOnly(file).load().data[0]
  return {name: found[name].numbers() if isinstance(found[name], _Array) else found[name]
          for name in _FIELDS if name in found}
