"""Zip members and pickles from untrusted files: sizes are checked before anything is read."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from typing import BinaryIO

# `zipfile` bounds the size of an unpacked chunk only for these.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class TooLarge(zipfile.BadZipFile):
  """A member of a zip is larger than the limit."""


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Reads a member of a zip; never unpacks more than `limit` bytes, whatever size the member declares.

  Raises:
    TooLarge: the member declares more than `limit` bytes.
    NotImplementedError: the member is neither stored nor deflated.
    zipfile.BadZipFile: the member is damaged; `zipfile` and zlib raise other errors, too.
  """
  info = archive.getinfo(name)
  size = max(info.file_size, info.compress_size)
  if size > limit:
    raise TooLarge(f'{name} has {size:,} bytes; the limit is {limit:,}')
  if info.compress_type not in _METHODS:
    method = zipfile.compressor_names.get(info.compress_type, f'method {info.compress_type}')
    raise NotImplementedError(f'{name} is compressed by {method}; use stored or deflated')
  with archive.open(info) as file:
    data = file.read(info.file_size)
  if len(data) != info.file_size:
    raise zipfile.BadZipFile(f'{name} has {len(data):,} bytes, but declares {info.file_size:,}')
  return data


def check_pickle(file: BinaryIO, limit: int) -> None:
  """Checks the size of the next pickle and of its memo, and restores the file's position.

  The unpickler allocates its memo by the largest PUT index, so ten bytes can allocate gigabytes.

  Raises:
    pickle.UnpicklingError: the pickle has more than `limit` bytes or memo entries.
    ValueError: the data is not a pickle.
  """
  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    if position - start > limit or ('PUT' in opcode.name and argument > position - start):
      raise pickle.UnpicklingError(f'a pickle of more than {limit:,} bytes')
  file.seek(start)
