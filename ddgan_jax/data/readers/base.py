"""Readers: what gives the images of a set one by one, encoded or raw, in a fixed order, with their labels.

A reader finds and names; `images.decode` judges each image. Readers are picklable and may be shared by threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.data import images


class DataError(UserError):
  """The data cannot be downloaded, prepared or read here; the sentence says what to do instead."""


class PathError(DataError):
  """What is at data.path cannot be used.

  Attributes:
    problem: the path and what is wrong with it, for commands that call it otherwise.
  """

  def __init__(self, problem: str):
    super().__init__(problem)
    self.problem = problem

  def __str__(self) -> str:
    return f'data.path: {self.problem}'


class Reader:
  """N images in a fixed order.

  Attributes:
    title: what messages call it.
    has_labels: whether `read` gives labels other than 0.
    class_names: names of the labels 0, 1, …; None if there are no labels or their names are not known.
    num_classes: number of classes, None without labels.
    bad: (name, reason) of what cannot even be listed: broken links, folders that may not be entered.
    notes: remarks on what was found, one sentence each.
    watched: a file of this machine that changes when the data do, for readers that are slow to open; '' for none.
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
    """What messages call image i."""
    raise NotImplementedError

  def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
    """Image i, encoded or as [H, W, C] uint8, and its label. Raises `images.BadImage`."""
    raise NotImplementedError

  def read_many(self, indices: Sequence[int]) -> Iterable[tuple[bytes | np.ndarray, int] | images.BadImage]:
    """What `read` returns for each of `indices`, or the BadImage that it raises; lazily, one image at a time."""
    for i in indices:
      try:
        item = self.read(int(i))
      except images.BadImage as e:
        item = e
      yield item
      del item  # may be large

  def fingerprint(self) -> str:
    """Changes when the files do."""
    raise NotImplementedError


def stamp(path: str) -> str:
  """Changes when the file does."""
  info = os.stat(path)
  return f'{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}'
