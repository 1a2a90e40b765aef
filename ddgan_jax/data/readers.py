"""Readers: what gives the images of a set one by one, encoded or raw, in a fixed order, with their labels.

A reader finds and names; `images.decode` judges each image. Readers are picklable and may be shared by threads.
`trees` reads folders and zips, `arrays` npz and LMDB, `tfds_reader` the TFDS catalogue.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

from ddgan_jax.config import DataConfig, UserError
from ddgan_jax.data import images


class DataError(UserError):
  """The data cannot be downloaded, prepared or read here; the sentence says what to do instead."""


class Reader:
  """N images in a fixed order.

  Attributes:
    title: what messages call it.
    has_labels: whether `read` gives labels other than 0.
    class_names: names of the labels 0, 1, …; None if there are no labels or their names are not known.
    num_classes: number of classes, None without labels.
    bad: (name, reason) of what cannot even be listed: broken links, folders that may not be entered.
    notes: remarks on what was found, one sentence each.
    watched: a file of this machine that changes when the data do, for readers that are slow to open; '' for none.
  """

  title = ''
  has_labels = False
  class_names: tuple[str, ...] | None = None
  num_classes: int | None = None
  bad: Sequence[tuple[str, str]] = ()
  notes: Sequence[str] = ()
  watched = ''

  def __len__(self) -> int:
    raise NotImplementedError

  def name(self, i: int) -> str:
    """What messages call image i."""
    raise NotImplementedError

  def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
    """Image i, encoded or as [H, W, C] uint8, and its label. Raises `images.BadImage`."""
    raise NotImplementedError

  def read_many(self, indices: Sequence[int]) -> Iterable[tuple[bytes | np.ndarray, int] | images.BadImage]:
    """What `read` returns for each of `indices`, or the BadImage that it raises; lazily, one image at a time."""
    for i in indices:
      try:
        item = self.read(int(i))
      except images.BadImage as e:
        item = e
      yield item
      del item  # may be large

  def fingerprint(self) -> str:
    """Changes when the files do."""
    raise NotImplementedError


def open_reader(data_config: DataConfig) -> Reader:
  """The reader of a `data.name` that has a `data.path`.

  Raises:
    DataError: data.path is absent, empty, of another kind, or cannot be read.
  """
  name, path = data_config.name, os.path.expanduser(data_config.path)
  if '://' in path:
    raise DataError(f'data.path: found {path!r}, must be a path of this machine; copy it here first, or mount it')
  if not os.path.exists(path):
    raise DataError(f'data.path: {path} does not exist')
  kind = _kind(path)
  if kind != name:
    found = f'{kind}; --config.data.name={kind} would be right' if kind else 'none of folder, npz, zip, lmdb'
    if name == 'lmdb' and kind == 'folder':
      inside = sorted(entry.path for entry in os.scandir(path) if os.path.exists(os.path.join(entry.path, 'data.mdb')))
      found = f'a folder without data.mdb; {" or ".join(inside) or "the folder that holds data.mdb"} would be right'
    raise DataError(f'data.path: {path} is read as data.name={name!r}, but it is {found}')
  from ddgan_jax.data import arrays, trees  # They import this module.

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
        raise DataError(f'data.path: {path} is a zipped LMDB; unzip it, and give the folder that holds data.mdb')
      return 'npz' if names and all(name.endswith('.npy') for name in names) else 'zip'
    with open(path, 'rb') as file:
      head = file.read(24)
  except DataError:
    raise
  except Exception as e:  # zipfile fails in many ways
    raise DataError(f'data.path: {path} cannot be read ({getattr(e, "strerror", None) or e})') from e
  if head[16:20] == b'\xde\xc0\xef\xbe':  # LMDB's magic number, little-endian
    return 'lmdb'
  # A damaged archive is no zip file any more: judge it by its name, and let the reader say what is wrong.
  ending = os.path.splitext(path)[1].lower()
  return {'.zip': 'zip', '.npz': 'npz', '.mdb': 'lmdb'}.get(ending, '')


def stamp(path: str) -> str:
  """Changes when the file does."""
  info = os.stat(path)
  return f'{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}'
