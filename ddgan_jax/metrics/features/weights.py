"""The published weights of the feature networks: given, in the environment, in the cache, or downloaded."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddgan_jax.config import UserError
from ddgan_jax.interop import torch_file
from ddgan_jax.utils import files

_SECONDS_TO_ANSWER = 8.0  # to connect, and between two parts of what is sent


class WeightsError(UserError):
  """The weights are not there, cannot be had, or are not those that a figure needs to be comparable."""


class Published(NamedTuple):
  """A file of weights that others publish; the environment variable `variable` may hold its path."""

  file: str
  url: str
  sha256: str
  variable: str


INCEPTION = Published(
    'pt_inception-2015-12-05-6726825d.pth',
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth',
    '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2', 'DDGAN_JAX_INCEPTION')
VGG16 = Published(
    'vgg16-397923af.pth', 'https://download.pytorch.org/models/vgg16-397923af.pth',
    '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0', 'DDGAN_JAX_VGG16')


def load(
    published: Published, convert: Callable[[Mapping[str, np.ndarray]], Any], path: str | None, allow_any: bool) -> Any:
  """The tensors of the file that `find` finds, converted; an error of `convert` names the file."""
  file = find(published, path, allow_any)
  try:
    return convert(torch_file.read_state_dict(file))
  except WeightsError as e:
    raise WeightsError(f'{file}: {e}') from e


def find(published: Published, path: str | os.PathLike | None = None, allow_any: bool = False) -> pathlib.Path:
  """Finds the file: `path`, else the environment variable, else the cache folder, else it is downloaded into that.

  It has the published checksum, unless `allow_any` and the path or the variable names it: features of other weights
  make figures that nothing can be compared with.

  Raises:
    WeightsError: there is no such file, it has another checksum, or it cannot be downloaded.
  """
  for given, where in ((path, ''), (os.environ.get(published.variable), f'${published.variable}: ')):
    if given:
      file = pathlib.Path(given).expanduser()
      if not file.is_file():
        problem = 'is not a file' if file.exists() else 'does not exist'
        raise WeightsError(f'{where}{file} {problem}; use {published.file}')
      if not allow_any:
        _check(published, file, f'{where}{file}')
      return file
  return _cached(published)


def _check(published: Published, file: pathlib.Path, name: str) -> None:
  try:
    with open(file, 'rb') as stream:
      found = hashlib.file_digest(stream, 'sha256').hexdigest()
  except OSError as e:
    raise WeightsError(f'{name} cannot be read ({e.strerror})') from e
  if found != published.sha256:
    raise WeightsError(f'{name} has the SHA-256 checksum {found[:8]}…, must be {published.sha256[:8]}… as that of '
                       f'{published.file}; give the published file, which can be downloaded from {published.url}')


def _cached(published: Published) -> pathlib.Path:
  """The file in the cache folder, downloaded if it is not there or damaged."""
  import pooch

  folder = files.cache_dir('weights')
  downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**20, timeout=_SECONDS_TO_ANSWER)
  try:
    return pathlib.Path(pooch.retrieve(
        published.url, f'sha256:{published.sha256}', published.file, folder, downloader=downloader))
  except (OSError, ValueError) as e:  # those of requests are OSErrors, a wrong checksum is a ValueError of pooch
    if isinstance(e, ValueError):
      cause = f'its SHA-256 checksum is not {published.sha256[:8]}…'
    elif hasattr(e, 'response'):
      cause = type(e).__name__ if e.response is None else f'the server answers {e.response.status_code}'
    else:
      e = e.__cause__ or e  # of the PermissionError that pooch raises without a filename
      raise WeightsError(f'{e.filename or folder} cannot be written ({e.strerror or e}); put the path of '
                         f'{published.file} into the environment variable {published.variable}') from e
    raise WeightsError(f'{published.url} cannot be downloaded ({cause}); put {published.file} into {folder}, or its '
                       f'path into the environment variable {published.variable}') from e
