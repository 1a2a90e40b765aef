"""Zip members, npz arrays and pickles of unknown origin: their sizes are checked before they are read.

A compressed file can unpack to a thousand times its size, and what it declares need not be true.
"""

from __future__ import annotations

import bz2
import copy
import io
import lzma
import math
import pickle
import pickletools
import zipfile
import zlib
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

_HEADER_BYTES = 2**14  # NumPy refuses headers of more than 10,000.
_LZMA_MEMORY = 2**29  # for a dictionary of up to 512 MiB; 7-Zip's largest preset takes 64


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Reads a member of a zip, unpacking no more than `limit` bytes whatever it declares.

  Raises:
    zipfile.BadZipFile: it is larger, or shorter than it declares. `zipfile` and its decompressors raise other errors
      for other damage.
  """
  info = archive.getinfo(name)
  size = max(info.file_size, info.compress_size)
  if size > limit:
    raise zipfile.BadZipFile(f'{name} has {size:,} bytes, must have at most {limit:,}')
  if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    with archive.open(info) as file:
      data = file.read(info.file_size)
  else:
    data = _unpack(archive, info)
  if len(data) != info.file_size:
    raise zipfile.BadZipFile(f'{name} has {len(data):,} bytes, but declares {info.file_size:,}')
  return data


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  """Unpacks bzip2 and LZMA, of which `zipfile` unpacks all that it has read, however much that becomes."""
  packed_info = copy.copy(info)
  packed_info.compress_type, packed_info.file_size = zipfile.ZIP_STORED, info.compress_size
  del packed_info.CRC  # of what is unpacked
  with archive.open(packed_info) as file:
    packed = file.read()
  if info.compress_type == zipfile.ZIP_BZIP2:
    decompressor: bz2.BZ2Decompressor | lzma.LZMADecompressor = bz2.BZ2Decompressor()
  elif info.compress_type == zipfile.ZIP_LZMA:
    # A zip has four bytes before LZMA's properties, an .lzma file the size (here unknown) after them.
    packed = packed[4:9] + b'\xff' * 8 + packed[9:]
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
  else:
    raise NotImplementedError(f'compression method {info.compress_type}')
  data = decompressor.decompress(packed, info.file_size)
  if zlib.crc32(data) != info.CRC:
    raise zipfile.BadZipFile(f'Bad CRC-32 for file {info.filename!r}')
  return data


def array_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array of an npz.

  Raises:
    ValueError: it is no array, or its member has more or fewer bytes than such an array. `zipfile` and `zlib` raise
      other errors for damage.
  """
  info = archive.getinfo(f'{name}.npy')
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f'{info.filename} is neither stored nor deflated, as NumPy writes it')
  with archive.open(info) as file:
    head = io.BytesIO(file.read(_HEADER_BYTES))
  version = npy.read_magic(head)
  read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
  shape, _, dtype = read_header(head)
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
  """Checks that the next pickle has at most `limit` bytes and that its memo is no larger; leaves the position as it is.

  An unpickler allocates as many places as the largest number that a pickle puts something under: ten bytes can ask for
  gigabytes.

  Raises:
    pickle.UnpicklingError: it is larger. `pickletools` raises ValueError for what is no pickle.
  """
  start = file.tell()
  for opcode, argument, position in pickletools.genops(file):
    if position - start > limit or ('PUT' in opcode.name and argument > position - start):
      raise pickle.UnpicklingError(f'a pickle that takes more than {limit:,} bytes')
  file.seek(start)
