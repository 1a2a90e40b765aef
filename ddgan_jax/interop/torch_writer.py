"""Checkpoints that `torch.load` reads, from numpy arrays; needs no PyTorch.

The zip format of `torch.save` since PyTorch 1.6: a pickle in which every tensor names its data by a number, and the
data under these numbers. The pickle is written opcode by opcode: `pickle` itself writes only names that it can import.
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
  """Writes what `torch.load(path, weights_only=True)` gives back with tensors for the arrays.

  `content` is of dicts, lists and tuples of arrays (not in tuples), numbers, texts, booleans and None. A file of that
  name is replaced, whole or not at all. Raises UserError if it cannot be written.
  """
  path = os.fspath(path)
  arrays: list[np.ndarray] = []
  body = pickle.PROTO + b'\x02' + _encoded(content, arrays) + pickle.STOP
  try:
    with files.atomic_write(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
      # ZipInfo has a fixed date: the same content gives the same bytes.
      archive.writestr(zipfile.ZipInfo('archive/data.pkl'), body)
      archive.writestr(zipfile.ZipInfo('archive/byteorder'), 'little')
      for key, array in enumerate(arrays):
        archive.writestr(zipfile.ZipInfo(f'archive/data/{key}'), array.astype(array.dtype.newbyteorder('<')).tobytes())
      archive.writestr(zipfile.ZipInfo('archive/version'), '3\n')
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({error.strerror or error})') from error


def _encoded(value: Any, arrays: list[np.ndarray]) -> bytes:
  """The opcodes that leave `value` on the stack of an unpickler; arrays are appended to `arrays`."""
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
