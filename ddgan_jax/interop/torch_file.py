"""PyTorch's checkpoints (`.pth`) as numpy arrays; needs no PyTorch, and runs nothing that a file asks for.

Both formats that `torch.save` has had since 2017: a zip of one pickle and raw storages, and before 1.6 a row of pickles
followed by the storages. A pickle may name any function of Python and have it called, so that the unpickler here knows
the handful of names that a checkpoint needs and refuses all others. That is stricter than `torch.load` with
`weights_only=True`, in which ways to run code were found (CVE-2025-32434, CVE-2026-24747), and it reads what that one
refuses: the `argparse.Namespace` of a resume file, as a dict.
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
_MAX_PICKLE = 2**24  # bytes; a tensor takes about 300
_MAX_SHARING = 16  # total size of the tensors / size of the file; tensors may share a storage
_MAX_DIMENSIONS = 64
DTYPES = {
    'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16', 'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64', 'IntStorage': 'int32', 'ShortStorage': 'int16', 'CharStorage': 'int8',
    'ByteStorage': 'uint8', 'BoolStorage': 'bool'}


class TorchFileError(UserError):
  """The file is not a checkpoint that can be read here."""


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
  """Reads a file that `torch.save(module.state_dict(), path)` wrote: name → array, in the file's order.

  For its dtypes and errors see `read_checkpoint`.
  """
  content = read_checkpoint(path)
  for name, value in content.items():
    if not isinstance(value, np.ndarray):
      raise TorchFileError(f'{path}: holds {_describe(value)} under {name!r}, must be a state dict (a dict of name to '
                           'tensor); save that part of it alone')
  return content


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a file that `torch.save` wrote of a dict of tensors, numbers and texts in dicts, lists and tuples.

  Args:
    path: a file in PyTorch's zip format or its older one.

  Returns:
    The dict, with arrays of the stored dtype for tensors (bfloat16 is that of ml_dtypes), and dicts for what had
    attributes.

  Raises:
    TorchFileError: the file cannot be read, is damaged, holds something else, or asks for what such a dict does not
      need; one sentence.
  """
  path = os.fspath(path)
  try:
    with open(path, 'rb') as file:
      is_zip = file.read(4) == b'PK\x03\x04'
      file.seek(0)
      return (_read_zip if is_zip else _read_legacy)(path, file)
  except OSError as e:
    raise TorchFileError(f'{path}: cannot be read ({e.strerror or e})') from e


def _read_zip(path: str, file: BinaryIO) -> dict[str, Any]:
  try:
    with zipfile.ZipFile(file) as archive:
      pickles = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise TorchFileError(f'{path}: is a zip file without data.pkl, so torch.save did not write it')
      root = pickles[0].removesuffix('data.pkl')
      if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise TorchFileError(f'{path}: is compressed, which torch.save never does; load it with PyTorch and save it '
                             'again')
      byteorder = f'{root}byteorder'
      if byteorder in archive.namelist() and untrusted.read_member(archive, byteorder, 16) != b'little':
        raise TorchFileError(f'{path}: was written on a big-endian machine; save it again on a little-endian one')
      found = _unpickle(path, io.BytesIO(untrusted.read_member(archive, pickles[0], _MAX_PICKLE)))
      _fill(path, found, lambda storage: untrusted.read_member(
          archive, f'{root}data/{storage.key}', storage.total * _dtype(storage).itemsize))
      return found
  except untrusted.TooLarge as e:
    raise TorchFileError(f'{path}: {e}') from e
  except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as e:
    raise TorchFileError(f'{path}: {_DAMAGED} ({str(e.args[0] if e.args else e).strip(".")})') from e


def _read_legacy(path: str, file: BinaryIO) -> dict[str, Any]:
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

  _fill(path, found, read)
  return found


_DAMAGED = 'is truncated or damaged'


def _dtype(storage: _Storage) -> np.dtype:
  return np.dtype(jax.dtypes.bfloat16 if storage.dtype == 'bfloat16' else storage.dtype)


def _unpickle(path: str, stream: BinaryIO, storages: dict[str, _Storage] | None = None) -> Any:
  """The next pickle of the stream in plain types and `_Tensor`s; adds the storages that it names."""
  storages = {} if storages is None else storages

  # What a pickle can get hold of is built in or made for it alone, and has no state that it could change for others.
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
    """Made by a call with the tensor, or, before 2018, without one that its state then holds."""

    def __init__(self, data=None, requires_grad=True):
      self.data = data

    def __setstate__(self, state):
      if len(state) == 5:
        self.data = state[0]

  class Namespace:
    """The options of a command, of which only the attributes matter."""

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
        raise TorchFileError(f'{path}: asks for {module}.{name}, which a checkpoint of tensors does not need; '
                             'refused, because a checkpoint can run any code that it names')
      return known[f'{module}.{name}']

    def persistent_load(self, pid):
      kind, dtype, key, _, total, *view = pid
      if kind != 'storage' or dtype not in DTYPES.values() or type(total) is not int or total < 0:
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

  made: dict[int, Any] = {}  # by id: a pickle may hold one thing many times, or inside itself

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
  except Exception as e:  # the machine that a pickle is a program for fails in many ways
    raise TorchFileError(f'{path}: {_DAMAGED} ({str(e).strip(".") or type(e).__name__})') from e


def _check(path: str, found: Any) -> None:
  if not isinstance(found, dict) or not found:
    raise TorchFileError(f'{path}: holds {_describe(found)}, must be a dict with tensors in it')
  for container, key, name, value in _items(found):
    wrong_key = isinstance(container, dict) and type(key) not in (str, int)
    if wrong_key or (type(value) not in (_Tensor, bool, int, float, str, dict, list, tuple) and value is not None):
      raise TorchFileError(f'{path}: holds {_describe(value)} under {name}, must hold tensors, numbers and texts alone')
    if isinstance(container, tuple) and isinstance(value, _Tensor):
      raise TorchFileError(f'{path}: holds a tensor in a tuple under {name}, must hold tensors in dicts and lists')


def _items(found: dict) -> Iterator[tuple[Any, Any, str, Any]]:
  """(container, key, name of the place, value) of all that is in `found`, in its order, each container once."""
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
  """Puts arrays in the place of the tensors."""
  _check(path, found)
  tensors = [item for item in _items(found) if isinstance(item[3], _Tensor)]
  length = os.path.getsize(path)
  stored = {tensor.storage.key: tensor.storage.total * _dtype(tensor.storage).itemsize for *_, tensor in tensors}
  if sum(stored.values()) > length:
    raise TorchFileError(f'{path}: {_DAMAGED} ({length:,} bytes, must be more than {sum(stored.values()):,})')
  needed = sum(math.prod(tensor.shape) * _dtype(tensor.storage).itemsize for *_, tensor in tensors)
  if needed > _MAX_SHARING * length:
    raise TorchFileError(f'{path}: {_DAMAGED} (its tensors need {needed:,} bytes, the file has {length:,})')
  raw: dict[str, np.ndarray] = {}
  uses = collections.Counter(tensor.storage.key for *_, tensor in tensors)
  for container, key, name, (storage, offset, shape, strides) in tensors:
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
    container[key] = np.lib.stride_tricks.as_strided(flat, shape, [dtype.itemsize * n for n in strides]).copy()
    uses[storage.key] -= 1
    if not uses[storage.key]:
      del raw[storage.key]


def _describe(value: Any) -> str:
  if isinstance(value, _Tensor):
    return 'one tensor'
  return 'nothing' if value == {} else f'a value of type {type(value).__name__}'
