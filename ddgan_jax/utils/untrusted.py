"""Zip members, npz arrays and pickles of unknown origin: their sizes are checked before they are read.

A compressed file can unpack to a thousand times its size, and its declared size may be false.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

_HEADER_BYTES = 2**14  # NumPy refuses headers of more than 10,000.
# Only for these does `zipfile` bound how much it unpacks at a time.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class TooLarge(zipfile.BadZipFile):
  """A member of a zip is larger than the limit."""


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Reads a member of a zip, unpacking no more than `limit` bytes whatever it declares.

  Raises:
    TooLarge: it declares more.
    NotImplementedError: it is neither stored nor deflated.
    zipfile.BadZipFile: it is damaged; `zipfile` and zlib raise other errors, too.
  """
  info = archive.getinfo(name)
  size = max(info.file_size, info.compress_size)
  if size > limit:
    raise TooLarge(f'{name} has {size:,} bytes, must have at most {limit:,}')
  check_method(info)
  with archive.open(info) as file:
    data = file.read(info.file_size)
  if len(data) != info.file_size:
    raise zipfile.BadZipFile(f'{name} has {len(data):,} bytes, but declares {info.file_size:,}')
  return data


def check_method(info: zipfile.ZipInfo) -> None:
  """Raises NotImplementedError unless a member is stored or deflated, as almost all are."""
  if info.compress_type not in _METHODS:
    method = zipfile.compressor_names.get(info.compress_type, f'method {info.compress_type}')
    raise NotImplementedError(f'{info.filename} is compressed by {method}, must be stored or deflated')


def array_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array of an npz.

  Raises:
    ValueError: it is no array, or its member has more or fewer bytes than such an array. `zipfile` and zlib raise other
      errors for damage.
  """
  info = archive.getinfo(f'{name}.npy')
  check_method(info)
  with archive.open(info) as file:
    head = io.BytesIO(file.read(_HEADER_BYTES))
  version = npy.read_magic(head)
  read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
  shape, _, dtype = read_header(head)
  if any(n < 0 for n in shape):
    raise ValueError(f'{info.filename} has the shape {list(shape)}')
  expected = head.tell() + math.prod(shape) * dtype.itemsize
  if not dtype.hasobject and info.file_size != expected:
    raise ValueError(
        f'{info.filename} has {info.file_size:,} bytes, but an array {dtype}{list(shape)} has {expected:,}')
  return shape, dtype


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads an array of an npz, with the errors of `array_header`; objects are refused."""
  array_header(archive, name)
  with archive.open(f'{name}.npy') as file:
    return npy.read_array(file, allow_pickle=False)


def check_pickle(file: BinaryIO, limit: int) -> None:
  """Checks that the next pickle has at most `limit` bytes and its memo no more entries; keeps the file's position.

  The unpickler sizes its memo by the largest PUT index, so ten bytes can allocate gigabytes.

  Raises:
    pickle.UnpicklingError: it is larger. `pickletools` raises ValueError for what is no pickle.
  """
  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    if position - start > limit or ('PUT' in opcode.name and argument > position - start):
      raise pickle.UnpicklingError(f'a pickle that takes more than {limit:,} bytes')
  file.seek(start)
