"""PyTorch's state dict files (`.pth`) as numpy arrays; needs no PyTorch, and runs nothing that a file asks for.

Both formats that `torch.save` has had since 2017: a zip of one pickle and raw storages, and before 1.6 a row of pickles
followed by the storages. A pickle may name any function of Python and have it called, so that the unpickler here knows
the handful of names that a state dict needs and refuses all others.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from ddgan_jax.config import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16', 'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64', 'IntStorage': 'int32', 'ShortStorage': 'int16', 'CharStorage': 'int8',
    'ByteStorage': 'uint8', 'BoolStorage': 'bool'}


class TorchFileError(UserError):
  """The file is not a state dict that can be read here."""


class _Storage(NamedTuple):
  """`size` elements from `start` on, of the raw data called `key`, which has `total` elements."""

  key: str
  dtype: str
  start: int
  size: int
  total: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a file that `torch.save(module.state_dict(), path)` wrote.

  Args:
    path: a file in PyTorch's zip format or its older one.

  Returns:
    Name → array of the stored dtype (bfloat16 is that of ml_dtypes), in the file's order.

  Raises:
    TorchFileError: the file cannot be read, is damaged, holds something else, or asks for what a state dict does not
      need; one sentence.
  """
  path = os.fspath(path)
  try:
    with open(path, 'rb') as file:
      is_zip = file.read(4) == b'PK\x03\x04'
      file.seek(0)
      return _read_zip(path, file) if is_zip else _read_legacy(path, file)
  except OSError as e:
    raise TorchFileError(f'{path}: cannot be read ({e.strerror or e})') from e


def _read_zip(path: str, file: BinaryIO) -> dict[str, np.ndarray]:
  try:
    with zipfile.ZipFile(file) as archive:
      pickles = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise TorchFileError(f'{path}: is a zip file without data.pkl, so torch.save did not write it')
      root = pickles[0].removesuffix('data.pkl')
      if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
        raise TorchFileError(f'{path}: was written on a big-endian machine; save it again on a little-endian one')
      with archive.open(pickles[0]) as stream:
        found = _unpickle(path, stream)
      return _arrays(path, found, lambda storage: archive.read(f'{root}data/{storage.key}'))
  except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as e:
    raise TorchFileError(f'{path}: {_DAMAGED} ({str(e.args[0] if e.args else e).strip(".")})') from e


def _read_legacy(path: str, file: BinaryIO) -> dict[str, np.ndarray]:
  length = os.path.getsize(path)
  if file.peek(1)[:1] != pickle.PROTO or _unpickle(path, file) != _MAGIC:
    raise TorchFileError(f'{path}: is not a PyTorch checkpoint ({length:,} bytes in neither of the formats that '
                         'torch.save writes)')
  if _unpickle(path, file) != _PROTOCOL:
    raise TorchFileError(f'{path}: {_DAMAGED} (unknown protocol)')
  system = _unpickle(path, file)
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise TorchFileError(f'{path}: was written on a big-endian machine; save it again on a little-endian one')
  storages: dict[str, _Storage] = {}
  found = _unpickle(path, file, storages)
  keys = _unpickle(path, file)
  if not isinstance(keys, list) or set(keys) != set(storages):
    raise TorchFileError(f'{path}: {_DAMAGED} (its list of storages does not fit)')
  places = {}
  for key in keys:
    head = file.read(8)
    total = storages[key].total
    if len(head) < 8 or struct.unpack('<q', head)[0] != total:
      raise TorchFileError(f'{path}: {_DAMAGED} (storage {key} is not where it should be)')
    places[key] = file.tell()
    end = places[key] + total * _dtype(storages[key]).itemsize
    if end > length:
      raise TorchFileError(f'{path}: {_DAMAGED} ({length:,} bytes, must be {end:,} or more)')
    file.seek(end)

  def read(storage: _Storage) -> bytes:
    file.seek(places[storage.key])
    return file.read(storage.total * _dtype(storage).itemsize)

  return _arrays(path, found, read)


_DAMAGED = 'is truncated or damaged'


def _dtype(storage: _Storage) -> np.dtype:
  return np.dtype(jax.dtypes.bfloat16 if storage.dtype == 'bfloat16' else storage.dtype)


def _unpickle(path: str, stream: BinaryIO, storages: dict[str, _Storage] | None = None) -> Any:
  """The next pickle of the stream, with every tensor as a `_Tensor`; adds the storages that it names."""
  storages = {} if storages is None else storages

  # What a pickle can get hold of is made anew for each, and has no state that it could change for others.
  def rebuild(storage, offset, shape, strides, *unused):
    if not isinstance(storage, _Storage):
      raise pickle.UnpicklingError('a tensor without a storage')
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError('a tensor with an impossible shape')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))

  class Parameter:
    """Made by a call with the tensor, or, before 2018, without one that its state then holds."""

    def __init__(self, data=None, requires_grad=True):
      self.data = data

    def __setstate__(self, state):
      if len(state) == 5:
        self.data = state[0]

  known: dict[str, Any] = {
      'collections.OrderedDict': collections.OrderedDict,
      'torch._utils._rebuild_tensor': rebuild,
      'torch._utils._rebuild_tensor_v2': rebuild,
      'torch._utils._rebuild_parameter': lambda data, *unused: data,
      'torch.nn.parameter.Parameter': Parameter,
      **{f'torch.{name}': dtype for name, dtype in _DTYPES.items()}}

  class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
      if f'{module}.{name}' not in known:
        raise TorchFileError(f'{path}: asks for {module}.{name}, which the tensors of a state dict do not need; '
                             'refused, because a checkpoint can run any code that it names')
      return known[f'{module}.{name}']

    def persistent_load(self, pid):
      kind, dtype, key, _, total, *view = pid
      if kind != 'storage' or dtype not in _DTYPES.values() or type(total) is not int or total < 0:
        raise pickle.UnpicklingError('an unknown kind of storage')
      storage = _Storage(str(key), dtype, 0, total, total)
      if storages.setdefault(storage.key, storage) != storage:
        raise pickle.UnpicklingError('two storages of one name')
      if view and view[0] is not None:  # a storage that is a part of another
        _, start, size = view[0]
        if min(start, size) < 0 or start + size > total:
          raise pickle.UnpicklingError('a part that is larger than the whole')
        storage = storage._replace(start=start, size=size)
      return storage

  try:
    found = Unpickler(stream, encoding='utf-8').load()
  except UserError:
    raise
  except Exception as e:  # the machine that a pickle is a program for fails in many ways
    raise TorchFileError(f'{path}: {_DAMAGED} ({str(e).strip(".") or type(e).__name__})') from e
  if isinstance(found, dict):
    found = type(found)((k, v.data if isinstance(v, Parameter) else v) for k, v in found.items())
  return found


def _arrays(path: str, found: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
  if not isinstance(found, dict) or not found:
    raise TorchFileError(f'{path}: holds {_describe(found)}, must be a state dict (a dict of name to tensor)')
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, _Tensor):
      raise TorchFileError(f'{path}: holds {_describe(value)} under {name!r}, must be a state dict (a dict of name to '
                           'tensor); save that part of it alone')
  raw: dict[str, np.ndarray] = {}
  uses = collections.Counter(value.storage.key for value in found.values())
  arrays = {}
  for name, (storage, offset, shape, strides) in found.items():
    dtype = _dtype(storage)
    if storage.key not in raw:
      data = read(storage)
      if len(data) != storage.total * dtype.itemsize:
        raise TorchFileError(f'{path}: {_DAMAGED} (the data of {name} have {len(data):,} bytes, must be '
                             f'{storage.total * dtype.itemsize:,})')
      raw[storage.key] = np.frombuffer(data, dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) if all(shape) else 0
    # More elements than the storage has would be an expanded tensor, which no module has and a hostile file may.
    if last >= max(storage.size, 1) or math.prod(shape) > storage.size:
      raise TorchFileError(f'{path}: {_DAMAGED} ({name} reaches beyond its data)')
    flat = raw[storage.key][storage.start + offset:]
    arrays[name] = np.lib.stride_tricks.as_strided(flat, shape, [dtype.itemsize * n for n in strides]).copy()
    uses[storage.key] -= 1
    if not uses[storage.key]:
      del raw[storage.key]
  return arrays


def _describe(value: Any) -> str:
  if isinstance(value, _Tensor):
    return 'one tensor'
  return 'nothing' if value == {} else f'a value of type {type(value).__name__}'
