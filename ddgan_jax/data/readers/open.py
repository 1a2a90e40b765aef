"""Which reader reads a `data.path`, judged by what is there."""

from __future__ import annotations

import os
import zipfile

from ddgan_jax.config import DataConfig
from ddgan_jax.data.readers import arrays, trees
from ddgan_jax.data.readers.base import PathError, Reader


def open_reader(data_config: DataConfig) -> Reader:
  """The reader of a `data.name` that has a `data.path`.

  Raises:
    PathError: data.path is absent, empty, of another kind, or cannot be read.
  """
  name, path = data_config.name, os.path.expanduser(data_config.path)
  if '://' in path:
    raise PathError(f'found {path!r}, must be a path of this machine; copy it here first, or mount it')
  if not os.path.exists(path):
    raise PathError(f'{path} does not exist')
  kind = _kind(path)
  if kind != name:
    found = f'{kind}; use --config.data.name={kind}' if kind else 'none of folder, npz, zip, lmdb'
    if name == 'lmdb' and kind == 'folder':
      found = 'a folder without data.mdb; use the folder that holds data.mdb'
    raise PathError(f'{path} is read as data.name={name!r}, but it is {found}')
  return {
      'folder': trees.FolderReader, 'zip': trees.ZipReader, 'npz': arrays.NpzReader, 'lmdb': arrays.LmdbReader,
  }[name](path)


def _kind(path: str) -> str:
  """Which `data.name` fits, from what is there and not from the file's ending; '' if none."""
  if os.path.isdir(path):
    return 'lmdb' if os.path.exists(os.path.join(path, 'data.mdb')) else 'folder'
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
      if any(name.endswith('data.mdb') for name in names):
        raise PathError(f'{path} is a zipped LMDB; unzip it, and give the folder that holds data.mdb')
      return 'npz' if names and all(name.endswith('.npy') for name in names) else 'zip'
    with open(path, 'rb') as file:
      head = file.read(24)
  except PathError:
    raise
  except Exception as e:  # zipfile fails in many ways
    raise PathError(f'{path} cannot be read ({getattr(e, "strerror", None) or e})') from e
  if head[16:20] == b'\xde\xc0\xef\xbe':  # LMDB's magic number, little-endian
    return 'lmdb'
  # A damaged archive is no zip file any more: judge it by its name, and let the reader say what is wrong.
  ending = os.path.splitext(path)[1].lower()
  return {'.zip': 'zip', '.npz': 'npz', '.mdb': 'lmdb'}.get(ending, '')
