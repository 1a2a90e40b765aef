"""Folders and zips of images (at most 256 MiB per file); class folders become labels."""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
import stat
import threading
import zipfile
from collections.abc import Iterable
from typing import Any

from ddgan_jax.data import images
from ddgan_jax.data.readers import PathError, Reader, stamp
from ddgan_jax.utils import untrusted


class _TreeReader(Reader):
  """Base of folders and zips: files by relative path, whose first part may be a class."""

  def _set_tree(self, names: Iterable[str]) -> None:
    """Sets the sorted images among `names`, and their labels by folder."""
    names = [name for name in names if not any(
        part.startswith('.') or part == '__MACOSX' for part in name.split('/'))]
    self.names = sorted(filter(_is_image, names))
    others = collections.Counter(_extension(name) or 'no extension' for name in names if not _is_image(name))
    counts = ', '.join(f'{count:,} {extension}' for extension, count in others.most_common(5))
    if not self.names:
      raise PathError(f'{self.title} contains no image ({", ".join(images.EXTENSIONS)}){counts and f"; {counts}"}')
    self.notes = [f'ignored files that are not images: {counts}'] if others else []
    # A folder that contains all images is not a class: `photos/` in `photos.zip/photos/cat/1.png`.
    depth = 0
    parts = [name.split('/') for name in self.names]
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
      depth += 1
    if all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) > 1:
      folders = sorted({p[depth] for p in parts})
      for one, other in itertools.pairwise(sorted(folders, key=str.casefold)):
        if one.casefold() == other.casefold():
          raise PathError(
              f'the class folders {one!r} and {other!r} in {self.title} differ only in case; merge or rename them')
      self.class_names = tuple(folders)
      self.num_classes = len(folders)
      self.has_labels = True
      number = {folder: k for k, folder in enumerate(folders)}
      self._labels = [number[p[depth]] for p in parts]
      if {folder.casefold() for folder in folders} <= {'train', 'training', 'val', 'valid', 'validation', 'test'}:
        self.notes.append(f'the classes are {" and ".join(folders)}; if these are splits, set data.path to one of them')
    else:
      file = next((name for name, p in zip(self.names, parts) if len(p) == depth + 1), None)
      if file and any(len(p) > depth + 1 for p in parts):
        self.notes.append(f'no labels, because {file} is not in a class folder')
      self._labels = [0] * len(parts)

  def __len__(self) -> int:
    return len(self.names)

  def name(self, i: int) -> str:
    return self.names[i]


class FolderReader(_TreeReader):
  """A directory tree of images; the folders at its first branching are the classes, if they contain all images."""

  def __init__(self, path: str):
    self.title = path
    self.bad = []
    self._stamps: dict[str, tuple[int, int, int]] = {}
    above = {path: ()}
    for folder, folders, files in os.walk(path, onerror=self._unreadable, followlinks=True):
      prefix = '' if folder == path else os.path.relpath(folder, path).replace(os.sep, '/') + '/'
      # Skips links to a folder above, which would be followed forever.
      chain = (*above.pop(folder), _real(folder))
      folders[:] = [
          name for name in folders if not name.startswith('.')
          and not any(real.startswith(_real(os.path.join(folder, name))) for real in chain)]
      above |= {os.path.join(folder, name): chain for name in folders}
      for name in sorted(files):
        if not name.startswith('.'):
          self._add(prefix + name)
    if not self._stamps and self.bad:
      raise PathError(f'{path}: {self.bad[0][0]} {self.bad[0][1]}')
    self._set_tree(self._stamps)

  def _unreadable(self, error: OSError) -> None:
    if error.filename == self.title:
      raise PathError(f'{self.title} cannot be read ({error.strerror})') from error
    self.bad.append((os.path.relpath(error.filename, self.title), f'cannot be read ({error.strerror})'))

  def _add(self, name: str) -> None:
    path = os.path.join(self.title, name)
    try:
      info = os.stat(path)  # follows links
      if stat.S_ISREG(info.st_mode):
        self._stamps[name] = (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        return
      problem = 'is not a regular file'
    except OSError as e:
      problem = f'{"is a broken link" if os.path.islink(path) else "cannot be read"} ({e.strerror})'
    if _is_image(name):
      self.bad.append((name, problem))

  def read(self, i: int) -> tuple[bytes, int]:
    try:
      return images.read_file(os.path.join(self.title, self.names[i])), self._labels[i]
    except OSError as e:
      raise images.BadImage(f'cannot be read ({e.strerror})') from e

  def fingerprint(self) -> str:
    digest = hashlib.sha256()
    for name in self.names:
      digest.update(os.fsencode(name) + b'\0%d %d %d\0' % self._stamps[name])
    digest.update(repr(list(self.bad)).encode('utf-8', 'backslashreplace'))
    return digest.hexdigest()


class ZipReader(_TreeReader):
  """A zip of images, with classes as in `FolderReader`."""

  def __init__(self, path: str):
    self.title = self._path = path
    self._local = threading.local()
    infos = [info for info in self._archive().infolist() if info.filename and not info.is_dir()]
    if any(info.flag_bits & 1 for info in infos):
      raise PathError(f'{path} is encrypted; unpack it, and use the folder')
    # Some programs write `./cat/1.png` or `cat\\1.png`.
    self._member = {info.filename.replace('\\', '/').removeprefix('./'): info.filename for info in infos}
    self._set_tree(self._member)

  def _archive(self) -> zipfile.ZipFile:
    # One per thread and process, because a shared one would lock its file position.
    if getattr(self._local, 'opened', None) is None:
      try:
        self._local.opened = zipfile.ZipFile(self._path)
      except Exception as e:  # zipfile and its decompressors fail in many ways
        raise PathError(f'{self._path} cannot be read as a zip file ({e})') from e
    return self._local.opened

  def read(self, i: int) -> tuple[bytes, int]:
    member = self._member[self.names[i]]
    try:
      return untrusted.read_member(self._archive(), member, images.MAX_ENCODED_BYTES), self._labels[i]
    except Exception as e:  # zipfile and its decompressors fail in many ways
      raise images.BadImage(f'cannot be unpacked ({e})') from e

  def fingerprint(self) -> str:
    return stamp(self._path)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != '_local'}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._local = threading.local()


def _real(folder: str) -> str:
  return os.path.join(os.path.realpath(folder), '')


def _extension(name: str) -> str:
  return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
  return _extension(name) in images.EXTENSIONS
