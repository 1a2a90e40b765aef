"""Readers: the images of a set, encoded or raw, in a fixed order, with their labels.

A reader lists images; `images.decode` checks each one. Readers are picklable and thread-safe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.data import images


class DataError(UserError):
  """The data cannot be downloaded, prepared or read; the message says what to do."""


class PathError(DataError):
  """The data at data.path cannot be used.

  Attributes:
    problem: the path and what is wrong with it, without the name `data.path`.
  """

  def __init__(self, problem: str):
    super().__init__(problem)
    self.problem = problem

  def __str__(self) -> str:
    return f'data.path: {self.problem}'


class Reader:
  """N images in a fixed order.

  Attributes:
    title: its name in messages.
    has_labels: whether the images have labels; otherwise `read` returns 0 for each.
    class_names: names of the labels 0, 1, …; None without labels or if unknown.
    num_classes: number of classes, None without labels.
    bad: (name, reason) of files that cannot be listed: broken links, folders without permission.
    notes: remarks on the data, one clause each.
    watched: a local file that changes when the data do, for readers that are slow to open; '' for none.
  """

  title = ''
  has_labels = False
  class_names: tuple[str, ...] | None = None
  num_classes: int | None = None
  bad: Sequence[tuple[str, str]] = ()
  notes: Sequence[str] = ()
  watched = ''

  def __len__(self) -> int:
    raise NotImplementedError

  def name(self, i: int) -> str:
    """The name of image i in messages."""
    raise NotImplementedError

  def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
    """Returns image i, encoded or [H, W, C] uint8, and its label. Raises `images.BadImage`."""
    raise NotImplementedError

  def read_many(self, indices: Sequence[int]) -> Iterable[tuple[bytes | np.ndarray, int] | images.BadImage]:
    """Lazily yields, for each index, the result of `read` or the BadImage that it raised."""
    for i in indices:
      try:
        item = self.read(int(i))
      except images.BadImage as e:
        item = e
      yield item
      del item  # may be large

  def fingerprint(self) -> str:
    """A string that changes when the files change."""
    raise NotImplementedError


def stamp(path: str) -> str:
  """A string that changes when the file changes: size and times."""
  info = os.stat(path)
  return f'{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}'
