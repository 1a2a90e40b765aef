"""Selects the reader of a `data.path` by its contents."""

from __future__ import annotations

import os
import zipfile

from ddgan_jax.config import DataConfig
from ddgan_jax.data.readers import arrays, trees
from ddgan_jax.data.readers.base import PathError, Reader

CONDITIONS = 'conditions'  # as data.split of an npz: this array instead of `images`


def open_reader(data_config: DataConfig) -> Reader:
  """Opens the reader for data.name and data.path.

  Raises:
    PathError: data.path does not exist, is empty, has another format, or cannot be read.
  """
  name, path = data_config.name, os.path.expanduser(data_config.path)
  if '://' in path:
    raise PathError(f'{path} is not a local path; copy or mount it first')
  if not os.path.exists(path):
    raise PathError(f'{path} does not exist')
  kind = kind_of(path)
  if kind != name:
    found = f'{kind}; use --config.data.name={kind}' if kind else 'none of folder, npz, zip, lmdb'
    if name == 'lmdb' and kind == 'folder':
      found = 'a folder without data.mdb; use the folder that contains data.mdb'
    raise PathError(f'{path} is opened as data.name={name!r}, but is {found}')
  if name == 'npz':
    return arrays.NpzReader(path, CONDITIONS if data_config.split == CONDITIONS else 'images')
  return {'folder': trees.FolderReader, 'zip': trees.ZipReader, 'lmdb': arrays.LmdbReader}[name](path)


def kind_of(path: str) -> str:
  """The matching data.name, by contents and not by extension; '' if none. Raises PathError if it cannot be read."""
  if os.path.isdir(path):
    return 'lmdb' if os.path.exists(os.path.join(path, 'data.mdb')) else 'folder'
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
      if any(name.endswith('data.mdb') for name in names):
        raise PathError(f'{path} is a zipped LMDB; unzip it, and use the folder that contains data.mdb')
      return 'npz' if names and all(name.endswith('.npy') for name in names) else 'zip'
    with open(path, 'rb') as file:
      head = file.read(24)
  except PathError:
    raise
  except Exception as e:  # zipfile fails in many ways
    raise PathError(f'{path} cannot be read ({getattr(e, "strerror", None) or e})') from e
  if head[16:20] == b'\xde\xc0\xef\xbe':  # LMDB's magic number, little-endian
    return 'lmdb'
  # A damaged archive has lost its magic number; by its extension it gets a reader that reports the damage.
  ending = os.path.splitext(path)[1].lower()
  return {'.zip': 'zip', '.npz': 'npz', '.mdb': 'lmdb'}.get(ending, '')
