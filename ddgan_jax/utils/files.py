"""Atomic writes and cache folders."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from etils import epath


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'w') -> Iterator[IO]:
  """Opens a temporary file that replaces `path` when the block ends.

  If the write fails or is killed, `path` keeps its old contents.

  Args:
    path: a local file or one in a bucket; its folder must exist.
    mode: 'w' for UTF-8 text, 'wb' for bytes.

  Raises:
    OSError: the file cannot be written. Buckets raise other errors, too.
  """
  path = epath.Path(path)
  partial = path.parent / f'.{path.name}.{os.getpid()}.partial'
  try:
    with partial.open(mode) as file:
      yield file
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(Exception):
      partial.unlink()
    raise


def cache_dir(name: str) -> pathlib.Path:
  """The folder `ddgan_jax/<name>` in $XDG_CACHE_HOME or ~/.cache, which may not exist yet."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(base) / 'ddgan_jax' / name
