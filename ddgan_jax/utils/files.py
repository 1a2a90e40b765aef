"""Files that are written whole or not at all, and where caches are kept."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from etils import epath


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'w') -> Iterator[IO]:
  """Opens a file under another name; it replaces `path` when the block ends.

  A write that fails removes that other file, and one that fails or is killed leaves what was at `path` before.

  Args:
    path: of this machine or in a bucket; its folder must exist.
    mode: 'w' for UTF-8 text, 'wb' for bytes.

  Raises:
    OSError: the file cannot be written. Buckets have other errors, too.
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
  """The folder `ddgan_jax/<name>` in $XDG_CACHE_HOME or ~/.cache; it need not exist."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(base) / 'ddgan_jax' / name
