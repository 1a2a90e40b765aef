"""Mean and covariance of a reference set's features: kept once computed, and read from published files."""

from __future__ import annotations

import hashlib
import os
import pathlib
import pickle
import zipfile
from typing import NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy

from ddgan_jax.config import UserError


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
    if path.endswith('.npz'):
      with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    else:
      with open(path, 'rb') as file:
        found = _read_dict(file)
    mean, covariance = (np.asarray(found[name], np.float64) for name in ('mu', 'sigma'))
    count = int(found['n']) if 'n' in found else None
  except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
    raise StatisticsError(f'{path}: holds no mu and sigma that can be read ({error})') from error
  if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
    raise StatisticsError(f'{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}, must be [{dimension}] '
                          f'and [{dimension}, {dimension}]')
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise StatisticsError(f'{path}: mu or sigma is not finite')
  return Statistics(path, mean, covariance, count)


def write(path: str | os.PathLike, statistics: Statistics) -> None:
  """Writes an `.npz` with mu, sigma and n, which `read` and pytorch-fid understand; whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.stem}.{os.getpid()}.partial.npz')
  np.savez(partial, mu=statistics.mean, sigma=statistics.covariance, n=statistics.count, name=statistics.name)
  partial.replace(path)


def load_cached(key: str) -> Statistics | None:
  """What `store` kept under `key`; None if nothing, or if the key is empty."""
  try:
    with np.load(_path(key)) as file:
      return Statistics(str(file['name']), file['mu'], file['sigma'], int(file['n']))
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    return None


def store(key: str, statistics: Statistics) -> None:
  """Keeps statistics for the next run, from the first process; nothing for an empty key."""
  if key and jax.process_index() == 0:
    write(_path(key), statistics)


def _path(key: str) -> pathlib.Path:
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  name = hashlib.sha256(key.encode()).hexdigest()[:16] if key else '-'
  return pathlib.Path(base) / 'ddgan_jax' / 'statistics' / f'{name}.npz'


class _ArraysOnly(pickle.Unpickler):
  """A dict of arrays needs these names; a pickle may otherwise run anything."""

  _ALLOWED = {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')} | {
      (f'numpy.{core}.multiarray', name) for core in ('core', '_core') for name in ('_reconstruct', 'scalar')}

  def find_class(self, module: str, name: str):
    if (module, name) not in self._ALLOWED:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}, which arrays do not need')
    return super().find_class(module, name)


def _read_dict(file) -> dict:
  version = npy.read_magic(file)
  read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
  shape, _, dtype = read_header(file)
  if not dtype.hasobject or shape != ():
    raise ValueError(f'it is an array {dtype}{list(shape)}')
  found = _ArraysOnly(file).load()
  found = found.item() if isinstance(found, np.ndarray) else found
  if not isinstance(found, dict):
    raise ValueError(f'it is a {type(found).__name__}')
  return found
