"""Finds the published weights of the feature networks: by path, environment variable, cache, or download."""

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

_TIMEOUT = 8.0  # seconds, to connect and between two chunks


class WeightsError(UserError):
  """The weights are missing, cannot be downloaded, or are not the published ones."""


class Published(NamedTuple):
  """A published file of weights; the environment variable `variable` may contain its path."""

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
DINOV2_VITB14 = Published(
    'dinov2_vitb14_pretrain.pth', 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth',
    '0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73', 'DDGAN_JAX_DINOV2_VITB14')
DINOV2_VITL14 = Published(
    'dinov2_vitl14_pretrain.pth', 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth',
    'd5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428', 'DDGAN_JAX_DINOV2_VITL14')


def load(
    published: Published, convert: Callable[[Mapping[str, np.ndarray]], Any], path: str | None, allow_any: bool) -> Any:
  """Converts the tensors of the file that `find` returns; errors of `convert` get the file's name."""
  file = find(published, path, allow_any)
  try:
    return convert(torch_file.read_state_dict(file))
  except WeightsError as e:
    raise WeightsError(f'{file}: {e}') from e


def find(published: Published, path: str | os.PathLike | None = None, allow_any: bool = False) -> pathlib.Path:
  """Returns `path`, else the path in the environment variable, else the cached file, which is downloaded if missing.

  The file must have the published checksum, because values of other weights are not comparable; with `allow_any`, a
  path or a variable may name a file with another checksum.

  Raises:
    WeightsError: the file does not exist, has another checksum, or cannot be downloaded.
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
    raise WeightsError(f'{name} has the SHA-256 checksum {found[:8]}…; use {published.file} ({published.sha256[:8]}…) '
                       f'from {published.url}')


def _cached(published: Published) -> pathlib.Path:
  """The file in the cache folder, downloaded if it is missing or damaged."""
  import pooch

  folder = files.cache_dir('weights')
  downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**20, timeout=_TIMEOUT)
  try:
    return pathlib.Path(pooch.retrieve(
        published.url, f'sha256:{published.sha256}', published.file, folder, downloader=downloader))
  except (OSError, ValueError) as e:  # requests raises OSErrors; pooch raises ValueError for a wrong checksum
    if isinstance(e, ValueError):
      cause = f'its SHA-256 checksum is not {published.sha256[:8]}…'
    elif hasattr(e, 'response'):
      cause = type(e).__name__ if e.response is None else f'HTTP status {e.response.status_code}'
    else:
      e = e.__cause__ or e  # pooch raises a PermissionError without a filename
      raise WeightsError(f'{e.filename or folder} cannot be written ({e.strerror or e}); put the path of '
                         f'{published.file} into the environment variable {published.variable}') from e
    raise WeightsError(f'{published.url} cannot be downloaded ({cause}); put {published.file} into {folder}, or its '
                       f'path into the environment variable {published.variable}') from e
