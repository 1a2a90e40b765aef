"""Reads PyTorch checkpoints (`.pth`) as numpy arrays; needs no PyTorch, and runs no code from a file.

Supports both formats of `torch.save` since 2017: a zip of one pickle and raw storages, and before 1.6 a sequence of
pickles followed by the storages. A pickle can call any Python function, so this unpickler allows only the few names
that a checkpoint needs. That is stricter than `torch.load` with `weights_only=True`, in which ways to run code were
found (CVE-2025-32434, CVE-2026-24747); yet it reads the `argparse.Namespace` of a resume file, as a dict.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.utils import untrusted

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_PICKLE = 2**24  # bytes, of which a tensor takes about 300
_MAX_SHARING = 16  # total size of the tensors / size of the file; tensors may share a storage
_MAX_DIMENSIONS = 64
DTYPES = {
    'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16', 'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64', 'IntStorage': 'int32', 'ShortStorage': 'int16', 'CharStorage': 'int8',
    'ByteStorage': 'uint8', 'BoolStorage': 'bool'}


class TorchFileError(UserError):
  """The file is not a readable checkpoint."""


class _Storage(NamedTuple):
  """Elements `start` … `start + size - 1` of the raw data `key`, which has `total` elements."""

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
  """Reads a file of `torch.save(module.state_dict(), path)`: name → array, in the file's order.

  See `read_checkpoint` for dtypes and errors.
  """
  content = read_checkpoint(path)
  for name, value in content.items():
    if not isinstance(value, np.ndarray):
      raise TorchFileError(f'{path} has {_describe(value)} under {name!r}; save only a state dict (a dict of name to '
                           'tensor)')
  return content


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a file of `torch.save` with a dict of tensors, numbers and strings, nested in dicts, lists and tuples.

  Args:
    path: a file in PyTorch's zip or legacy format.

  Returns:
    The dict, with arrays of the stored dtype for tensors (bfloat16 from ml_dtypes), and dicts for namespaces.

  Raises:
    TorchFileError: the file cannot be read, is damaged, has other contents, or refers to a name that such a dict does
      not need.
  """
  path = os.fspath(path)
  try:
    with open(path, 'rb') as file:
      is_zip = file.read(4) == b'PK\x03\x04'
      file.seek(0)
      return (_read_zip if is_zip else _read_legacy)(path, file)
  except OSError as e:
    raise TorchFileError(f'{path} cannot be read ({e.strerror or e})') from e


def _read_zip(path: str, file: BinaryIO) -> dict[str, Any]:
  try:
    with zipfile.ZipFile(file) as archive:
      pickles = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise TorchFileError(f'{path} is a zip file without data.pkl; use a file of torch.save')
      root = pickles[0].removesuffix('data.pkl')
      if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise TorchFileError(f'{path} is compressed, which torch.save never does; load it in PyTorch and save it again')
      byteorder = f'{root}byteorder'
      if byteorder in archive.namelist() and untrusted.read_member(archive, byteorder, 16) != b'little':
        raise TorchFileError(f'{path} was written on a big-endian machine; save it again on a little-endian one')
      found = _unpickle(path, io.BytesIO(untrusted.read_member(archive, pickles[0], _MAX_PICKLE)))
      _fill(path, found, lambda storage: untrusted.read_member(
          archive, f'{root}data/{storage.key}', storage.total * _dtype(storage).itemsize))
      return found
  except untrusted.TooLarge as e:
    raise TorchFileError(f'{path}: {e}') from e
  except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as e:
    raise TorchFileError(f'{path} {_DAMAGED} ({str(e.args[0] if e.args else e).strip(".")})') from e


def _read_legacy(path: str, file: BinaryIO) -> dict[str, Any]:
  length = os.path.getsize(path)
  if file.peek(1)[:1] != pickle.PROTO or _unpickle(path, file) != _MAGIC:
    raise TorchFileError(f'{path} is not a PyTorch checkpoint ({length:,} bytes in neither format of torch.save)')
  if _unpickle(path, file) != _PROTOCOL:
    raise TorchFileError(f'{path} {_DAMAGED} (unknown protocol)')
  system = _unpickle(path, file)
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise TorchFileError(f'{path} was written on a big-endian machine; save it again on a little-endian one')
  storages: dict[str, _Storage] = {}
  found = _unpickle(path, file, storages)
  keys = _unpickle(path, file)
  if not isinstance(keys, list) or set(keys) != set(storages):
    raise TorchFileError(f'{path} {_DAMAGED} (wrong list of storages)')
  places = {}
  for key in keys:
    head = file.read(8)
    total = storages[key].total
    if len(head) < 8 or struct.unpack('<q', head)[0] != total:
      raise TorchFileError(f'{path} {_DAMAGED} (storage {key} is not where expected)')
    places[key] = file.tell()
    end = places[key] + total * _dtype(storages[key]).itemsize
    if end > length:
      raise TorchFileError(f'{path} {_DAMAGED} ({length:,} of at least {end:,} bytes)')
    file.seek(end)

  def read(storage: _Storage) -> bytes:
    file.seek(places[storage.key])
    return file.read(storage.total * _dtype(storage).itemsize)

  _fill(path, found, read)
  return found


_DAMAGED = 'is truncated or damaged'


def _dtype(storage: _Storage) -> np.dtype:
  return np.dtype(jax.dtypes.bfloat16 if storage.dtype == 'bfloat16' else storage.dtype)


def _unpickle(path: str, stream: BinaryIO, storages: dict[str, _Storage] | None = None) -> Any:
  """Reads the next pickle of the stream as plain types and `_Tensor`s; adds its storages to `storages`."""
  storages = {} if storages is None else storages

  # Everything that a pickle can reach is immutable or made for this call, so that it cannot affect others.
  def rebuild(storage, offset, shape, strides, *unused):
    if not isinstance(storage, _Storage):
      raise pickle.UnpicklingError('a tensor without a storage')
    if max(len(shape), len(strides)) > _MAX_DIMENSIONS:
      raise pickle.UnpicklingError('a tensor of too many dimensions')
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError('a tensor with an impossible shape')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))

  class Parameter:
    """Constructed from a tensor, or, before 2018, from a state that contains it."""

    def __init__(self, data=None, requires_grad=True):
      self.data = data

    def __setstate__(self, state):
      if len(state) == 5:
        self.data = state[0]

  class Namespace:
    """Replaces `argparse.Namespace`; only its attributes are used."""

  known: dict[str, Any] = {
      'argparse.Namespace': Namespace,
      'collections.OrderedDict': collections.OrderedDict,
      'torch.Size': tuple,
      'torch._utils._rebuild_tensor': rebuild,
      'torch._utils._rebuild_tensor_v2': rebuild,
      'torch._utils._rebuild_parameter': lambda data, *unused: data,
      'torch.nn.parameter.Parameter': Parameter,
      **{f'torch.{name}': dtype for name, dtype in DTYPES.items()}}

  class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
      if f'{module}.{name}' not in known:
        raise TorchFileError(f'{path} refers to {module}.{name}, which a checkpoint of tensors does not need; not '
                             'loaded, because it could run arbitrary code')
      return known[f'{module}.{name}']

    def persistent_load(self, pid):
      kind, dtype, key, _, total, *view = pid
      if kind != 'storage' or dtype not in DTYPES.values() or type(total) is not int or total < 0:
        raise pickle.UnpicklingError('an unknown storage')
      storage = _Storage(str(key), dtype, 0, total, total)
      if storages.setdefault(storage.key, storage) != storage:
        raise pickle.UnpicklingError('two storages of one name')
      if view and view[0] is not None:  # a part of another storage
        _, start, size = view[0]
        if min(start, size) < 0 or start + size > total:
          raise pickle.UnpicklingError('a part larger than its storage')
        storage = storage._replace(start=start, size=size)
      return storage

  made: dict[int, Any] = {}  # by id, because a pickle may contain an object many times, or within itself

  def plain(value):
    if id(value) in made:
      return made[id(value)]
    if isinstance(value, Parameter):
      return plain(value.data)
    if isinstance(value, Namespace):
      return plain(vars(value))
    if isinstance(value, dict):
      new = made[id(value)] = {}
      new.update((key, plain(item)) for key, item in value.items())
    elif isinstance(value, list):
      new = made[id(value)] = []
      new.extend(map(plain, value))
    elif type(value) is tuple:
      new = made[id(value)] = tuple(map(plain, value))
    else:
      new = value
    return new

  try:
    untrusted.check_pickle(stream, _MAX_PICKLE)
    return plain(Unpickler(stream, encoding='utf-8').load())
  except UserError:
    raise
  except Exception as e:  # the unpickler raises many types
    raise TorchFileError(f'{path} {_DAMAGED} ({str(e).strip(".") or type(e).__name__})') from e


def _check(path: str, found: Any) -> None:
  if not isinstance(found, dict) or not found:
    raise TorchFileError(f'{path} contains {_describe(found)}; use a dict with tensors')
  for container, key, name, value in _items(found):
    wrong_key = isinstance(container, dict) and type(key) not in (str, int)
    if wrong_key or (type(value) not in (_Tensor, bool, int, float, str, dict, list, tuple) and value is not None):
      raise TorchFileError(f'{path} has {_describe(value)} under {name}; use only tensors, numbers and strings')
    if isinstance(container, tuple) and isinstance(value, _Tensor):
      raise TorchFileError(f'{path} has a tensor in a tuple under {name}; use dicts and lists')


def _items(found: dict) -> Iterator[tuple[Any, Any, str, Any]]:
  """Yields (container, key, dotted name, value) of every item in `found`, in order, each container once."""
  stack, seen = [('', found)], set()
  while stack:
    name, container = stack.pop()
    if id(container) in seen:
      continue
    seen.add(id(container))
    inside = []
    for key, value in [*(container.items() if isinstance(container, dict) else enumerate(container))]:
      place = f'{name}.{key}' if name else str(key)
      yield container, key, place, value
      if isinstance(value, (dict, list)) or type(value) is tuple:
        inside.append((place, value))
    stack.extend(reversed(inside))


def _fill(path: str, found: dict, read: Callable[[_Storage], bytes]) -> None:
  """Replaces the `_Tensor`s in `found` by arrays."""
  _check(path, found)
  tensors = [item for item in _items(found) if isinstance(item[3], _Tensor)]
  length = os.path.getsize(path)
  stored = {tensor.storage.key: tensor.storage.total * _dtype(tensor.storage).itemsize for *_, tensor in tensors}
  if sum(stored.values()) > length:
    raise TorchFileError(f'{path} {_DAMAGED} ({length:,} of more than {sum(stored.values()):,} bytes)')
  needed = sum(math.prod(tensor.shape) * _dtype(tensor.storage).itemsize for *_, tensor in tensors)
  if needed > _MAX_SHARING * length:
    raise TorchFileError(f'{path} {_DAMAGED} (its tensors need {needed:,} bytes, the file has {length:,})')
  raw: dict[str, np.ndarray] = {}
  uses = collections.Counter(tensor.storage.key for *_, tensor in tensors)
  for container, key, name, (storage, offset, shape, strides) in tensors:
    dtype = _dtype(storage)
    if storage.key not in raw:
      data = read(storage)
      if len(data) != storage.total * dtype.itemsize:
        raise TorchFileError(f'{path} {_DAMAGED} (the data of {name} have {len(data):,} of '
                             f'{storage.total * dtype.itemsize:,} bytes)')
      raw[storage.key] = np.frombuffer(data, dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) if all(shape) else 0
    # An expanded tensor, with more elements than its storage: no module has one, but a hostile file may.
    if last >= max(storage.size, 1) or math.prod(shape) > storage.size:
      raise TorchFileError(f'{path} {_DAMAGED} ({name} reaches beyond its data)')
    flat = raw[storage.key][storage.start + offset:]
    container[key] = np.lib.stride_tricks.as_strided(flat, shape, [dtype.itemsize * n for n in strides]).copy()
    uses[storage.key] -= 1
    if not uses[storage.key]:
      del raw[storage.key]


def _describe(value: Any) -> str:
  if isinstance(value, _Tensor):
    return 'one tensor'
  return 'nothing' if value == {} else f'a value of type {type(value).__name__}'
