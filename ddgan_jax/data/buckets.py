"""Data in a bucket (`data.path=gs://…`): a copy on this machine, made once and then kept up to date."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import filelock
from etils import epath

from ddgan_jax.config import DataConfig
from ddgan_jax.data import preparation
from ddgan_jax.data.readers import DataError, PathError
from ddgan_jax.utils import files

_THREADS = 32  # a bucket is slow to answer and fast to send


def localized(data_config: DataConfig, say: Callable[[str], None]) -> DataConfig:
  """The same data with a `data.path` of this machine: that of the copy if it is in a bucket, otherwise as it is.

  The copy lies in the cache of prepared data. Files are copied whose size or time in the bucket are not those of the
  copy, and what has gone from the bucket goes here too; a copy that was killed goes on. Several processes may call this
  at once: one copies, the others wait.

  Args:
    data_config: uses path and cache_dir.
    say: gets a sentence when there is something to copy.

  Raises:
    DataError: the bucket cannot be read, or the copy not be written.
  """
  path = data_config.path
  if '://' not in path:
    return data_config
  key = hashlib.sha256(path.encode()).hexdigest()[:10]
  folder = preparation.cache_folder(data_config) / 'copies' / key
  copy = folder / path.rstrip('/').rpartition('/')[2]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f'{folder}.lock'):
      _update(epath.Path(path), copy, say)
  except Exception as e:  # every kind of bucket has errors of its own
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise PathError(f'{path} cannot be copied to {copy} ({reason})') from e
  return dataclasses.replace(data_config, path=str(copy))


def _update(source: epath.Path, copy: pathlib.Path, say: Callable[[str], None]) -> None:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    wanted = dict(_files(source, copy, pool))
  if not wanted:
    raise DataError('there is nothing')
  stale = [(file, at, info) for at, (file, info) in wanted.items() if not _is_current(at, info)]
  if stale:
    size = sum(info.length for _, _, info in stale)
    say(f'Copying {len(stale):,} of {len(wanted):,} files ({size / 2**20:,.1f} MiB) of {source} to {copy}.')
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(lambda item: _copy(*item), stale))
  for at in list(copy.rglob('*')):
    if at.is_file() and at not in wanted:
      at.unlink()


def _files(
    source: epath.Path, copy: pathlib.Path, pool: concurrent.futures.Executor
) -> Iterator[tuple[pathlib.Path, tuple[epath.Path, epath.StatResult]]]:
  """Where each file of the tree goes, the file and what it is like; asked for level by level, many at a time."""
  level = [(source, copy)]
  while level:
    infos = list(pool.map(lambda item: item[0].stat(), level))
    yield from ((at, (entry, info)) for (entry, at), info in zip(level, infos) if not info.is_directory)
    folders = [item for item, info in zip(level, infos) if info.is_directory]
    level = [(entry, at / entry.name) for folder, at in folders for entry in folder.iterdir()]


def _is_current(at: pathlib.Path, info: epath.StatResult) -> bool:
  return at.is_file() and at.stat().st_size == info.length and int(at.stat().st_mtime) == int(info.mtime)


def _copy(file: epath.Path, at: pathlib.Path, info: epath.StatResult) -> None:
  at.parent.mkdir(parents=True, exist_ok=True)
  with file.open('rb') as source, files.atomic_write(at, 'wb') as target:
    shutil.copyfileobj(source, target, 2**20)
  os.utime(at, (info.mtime, info.mtime))  # a kill before this line costs another copy
