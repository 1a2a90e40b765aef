"""Writes numpy arrays as a checkpoint for `torch.load`; needs no PyTorch.

The format is the zip of `torch.save` since PyTorch 1.6: the tensors' data, and a pickle that refers to them by number.
The pickle is written opcode by opcode, because `pickle` only writes names that it can import.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from typing import Any

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.interop.torch_file import DTYPES
from ddgan_jax.utils import files

_STORAGES = {dtype: name for name, dtype in DTYPES.items()}


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
  """Atomically writes `content`, which `torch.load(path, weights_only=True)` returns with tensors for the arrays.

  `content` consists of dicts, lists and tuples of arrays (not in tuples), numbers, strings, booleans and None. Raises
  UserError if the file cannot be written.
  """
  path = os.fspath(path)
  arrays: list[np.ndarray] = []
  body = pickle.PROTO + b'\x02' + _encoded(content, arrays) + pickle.STOP
  try:
    with files.atomic_write(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
      # ZipInfo has a fixed date, so that the same content gives the same bytes.
      archive.writestr(zipfile.ZipInfo('archive/data.pkl'), body)
      archive.writestr(zipfile.ZipInfo('archive/byteorder'), 'little')
      for key, array in enumerate(arrays):
        archive.writestr(zipfile.ZipInfo(f'archive/data/{key}'), array.astype(array.dtype.newbyteorder('<')).tobytes())
      archive.writestr(zipfile.ZipInfo('archive/version'), '3\n')
  except OSError as error:
    raise UserError(f'{path} cannot be written ({error.strerror or error})') from error


def _encoded(value: Any, arrays: list[np.ndarray]) -> bytes:
  """The opcodes that push `value` on the unpickler's stack; appends its arrays to `arrays`."""
  if isinstance(value, np.ndarray):
    storage = f'ctorch\n{_STORAGES[value.dtype.name]}\n'.encode()
    kind, key, device = (_plain(text) for text in ('storage', str(len(arrays)), 'cpu'))
    arrays.append(value)
    strides = tuple(math.prod(value.shape[i + 1:]) for i in range(value.ndim))
    return b''.join([
        b'ctorch._utils\n_rebuild_tensor_v2\n(', b'(', kind, storage, key, device, _plain(value.size), b'tQ', _plain(0),
        _plain(value.shape), _plain(strides), _plain(False), b'ccollections\nOrderedDict\n)RtR'])
  if isinstance(value, dict):
    return b'}(' + b''.join(_plain(key) + _encoded(item, arrays) for key, item in value.items()) + b'u'
  if isinstance(value, list):
    return b'](' + b''.join(_encoded(item, arrays) for item in value) + b'e'
  return _plain(value)


def _plain(value: Any) -> bytes:
  return pickle.dumps(value, 2)[2:-1]
