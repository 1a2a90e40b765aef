"""The journal of a preparation: files that grow, and how far they are, so that a killed preparation goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddgan_jax.data.images import BadImage

HEADER = 128  # bytes before the pixels in images.npy


@dataclasses.dataclass
class Journal:
  """How far a preparation has come: written after each chunk, so that a killed one loses at most that."""

  folder: pathlib.Path
  fingerprint: str  # of the data and of how they are written
  item: int  # bytes of an image in images.npy, 0 to keep no pixels
  done: int = 0  # images looked at
  kept: int = 0  # of which these are good
  pixels_crc: int = 0  # CRC-32 of all pixels so far
  labels_crc: int = 0
  bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  hint: str = ''
  sure: tuple[int, int, int, int] | None = None  # done, kept and the sums before the first chunk with a bad image

  @classmethod
  def open(
      cls, folder: pathlib.Path, fingerprint: str, bad: Sequence[tuple[str, str]], item: int, doubt: bool
  ) -> Journal:
    """Reads the journal of `folder`, or begins one if it is absent, unreadable or of other data.

    With `doubt`, what was refused is looked at again: what kept an image from being read may have passed.
    """
    try:
      fields: Mapping[str, Any] = json.loads((folder / 'journal.json').read_text())
      journal = cls(folder, **{**fields, 'bad': [tuple(entry) for entry in fields['bad']]})
      if (journal.fingerprint, journal.item) != (fingerprint, item):
        raise ValueError
      if doubt and journal.sure:
        journal.done, journal.kept, journal.pixels_crc, journal.labels_crc = journal.sure
        journal.bad, journal.hint, journal.sure = list(bad), '', None
      for name, length in journal._lengths().items():
        if (folder / name).stat().st_size < length:
          raise ValueError
        os.truncate(folder / name, length)
    except (OSError, ValueError, KeyError, TypeError):
      shutil.rmtree(folder, ignore_errors=True)
      folder.mkdir(parents=True)
      journal = cls(folder, fingerprint, item, bad=list(bad))
      for name, length in journal._lengths().items():
        (folder / name).write_bytes(b'\0' * length)
    return journal

  def _lengths(self) -> dict[str, int]:
    pixels = {'images.npy': HEADER + self.kept * self.item} if self.item else {}
    return {**pixels, 'labels.bin': 4 * self.kept, 'kept.bin': 8 * self.kept}

  def append(
      self, numbers: range, read: Sequence[tuple[np.ndarray, int] | BadImage], name: Callable[[int], str]
  ) -> None:
    """Adds what was read of the images `numbers`; `name` gives the name of one."""
    if self.sure is None and any(isinstance(item, BadImage) for item in read):
      self.sure = (self.done, self.kept, self.pixels_crc, self.labels_crc)
    good = []
    for i, item in zip(numbers, read):
      if isinstance(item, BadImage):
        self.bad.append((name(i), str(item)))
        self.hint = self.hint or item.hint
      else:
        good.append((i, *item))
    if good:
      pixels = np.stack([image for _, image, _ in good])
      labels = np.array([label for _, _, label in good], np.int32)
      if self.item:
        _append(self.folder / 'images.npy', pixels)
      _append(self.folder / 'labels.bin', labels)
      _append(self.folder / 'kept.bin', np.array([i for i, _, _ in good], np.int64))
      self.pixels_crc = zlib.crc32(pixels, self.pixels_crc)
      self.labels_crc = zlib.crc32(labels, self.labels_crc)
    self.done = numbers.stop
    self.kept += len(good)
    text = json.dumps({k: v for k, v in vars(self).items() if k != 'folder'})
    (self.folder / 'journal.json.new').write_text(text)
    (self.folder / 'journal.json.new').replace(self.folder / 'journal.json')

  def finish(self, shape: tuple[int, int, int], has_pixels: bool) -> None:
    """Turns the files into .npy files; a second call does the same."""
    np.save(self.folder / 'labels.npy', np.fromfile(self.folder / 'labels.bin', np.int32))
    if has_pixels:
      with (self.folder / 'images.npy').open('r+b') as file:
        np.lib.format.write_array_header_1_0(
            file, {'descr': '|u1', 'fortran_order': False, 'shape': (self.kept, *shape)})
        assert file.tell() == HEADER
    else:
      np.save(self.folder / 'kept.npy', np.fromfile(self.folder / 'kept.bin', np.int64))


def sync(folder: pathlib.Path) -> None:
  """Returns when the files of `folder` are on the disk, and not only in memory."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())


def clean(folder: pathlib.Path) -> None:
  """Removes what only an unfinished preparation needs."""
  for name in ('labels.bin', 'kept.bin', 'journal.json', 'refused.txt'):
    (folder / name).unlink(missing_ok=True)


def _append(path: pathlib.Path, array: np.ndarray) -> None:
  with path.open('ab') as file:
    file.write(array.tobytes())
