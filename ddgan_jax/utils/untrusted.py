"""Zip members and pickles of unknown origin: their sizes are checked before they are read."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from typing import BinaryIO

# Only for these does `zipfile` bound how much it unpacks at a time.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class TooLarge(zipfile.BadZipFile):
  """A member of a zip is larger than the limit."""


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Reads a member of a zip, unpacking no more than `limit` bytes whatever size it declares.

  Raises:
    TooLarge: it declares more.
    NotImplementedError: it is neither stored nor deflated.
    zipfile.BadZipFile: it is damaged; `zipfile` and zlib raise other errors, too.
  """
  info = archive.getinfo(name)
  size = max(info.file_size, info.compress_size)
  if size > limit:
    raise TooLarge(f'{name} has {size:,} bytes, must have at most {limit:,}')
  if info.compress_type not in _METHODS:
    method = zipfile.compressor_names.get(info.compress_type, f'method {info.compress_type}')
    raise NotImplementedError(f'{name} is compressed by {method}, must be stored or deflated')
  with archive.open(info) as file:
    data = file.read(info.file_size)
  if len(data) != info.file_size:
    raise zipfile.BadZipFile(f'{name} has {len(data):,} bytes, but declares {info.file_size:,}')
  return data


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
