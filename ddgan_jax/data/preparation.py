"""Preparation: TFDS downloads a data set once and writes it as array_record, or says in one sentence why it cannot."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
import re
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from ddgan_jax.config import ConfigError, DataConfig, UserError


class DataError(UserError):
  """The data set cannot be downloaded, prepared or read here; the sentence says what to do instead."""


def find_builder(data_config: DataConfig) -> tfds.core.DatasetBuilder:
  from ddgan_jax.data import digits  # noqa: F401, importing it registers the name with TFDS.

  try:
    return tfds.builder(data_config.name, data_dir=os.path.expanduser(data_config.data_dir) or None)
  except tfds.core.DatasetNotFoundError as e:
    # TFDS's own message lists all its names and hides the suggestion below them.
    names = tfds.list_builders(with_community_datasets=False)  # The community's list would be downloaded.
    close = difflib.get_close_matches(data_config.name.split('/')[0], names, n=1)
    hint = f'did you mean {close[0]!r}?' if close else 'must be `digits` or a name of the TFDS catalogue'
    raise ConfigError(f'data.name: found {data_config.name!r}, which TFDS does not know; {hint}') from e
  except Exception as e:  # Whatever a builder's constructor raises: a bad config or version, unreadable metadata.
    raise ConfigError(f'data.name: found {data_config.name!r}, which TFDS cannot open: {one_line(e)}') from e


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  # TFDS warns of a "variant folder without dataset_info.json" when the answer is no.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return builder.is_prepared()
  finally:
    logging.set_verbosity(verbosity)


def prepare(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> tfds.core.DatasetBuilder:
  """Downloads and writes array_record files; returns a builder that reads them, or raises DataError."""
  name, data_dir = data_config.name, builder.data_dir_root
  manual_dir = data_dir / 'downloads' / 'manual'
  instead = f'copy a prepared {name} to {builder.data_dir} (or point --config.data.data_dir to where it is)'
  if builder.name == 'lsun' and importlib.util.find_spec('tensorflow_io') is None:
    # TFDS would find out only after a download of up to 43 GiB.
    raise DataError(
        f'{name} is not prepared in {data_dir}, and TFDS cannot prepare it here, since it reads the LMDB archives with '
        f'tensorflow_io, which is not installed (and has no release for current TensorFlow); {instead}.')
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    archive = getattr(builder.builder_config, 'file_name', '')
    if not (manual_dir / archive).exists() or not any(manual_dir.iterdir()):
      raise DataError(
          f'{name} is not prepared in {data_dir}, and its archive has to be placed by hand: put {archive or "it"} into '
          f'{manual_dir}, or {instead}. TFDS says: {one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}')

  quiet = contextlib.ExitStack()
  if builder.name == 'digits':
    # Half a second of local work; bars and banners would only push the run's first lines away.
    quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
    quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
  _refuse_unreachable(builder, manual_dir, instead)
  try:
    with quiet:
      builder.download_and_prepare(
          file_format='array_record', download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except Exception as e:
    # Of two processes that prepare the same set at once, TFDS lets the first rename its folder into place and fails the
    # second, for which the data is there all the same.
    if not is_prepared(builder):
      if isinstance(e, UserError):
        raise
      raise DataError(
          f'{name} could not be prepared in {data_dir}: {type(e).__name__}: {one_line(e)}. Mend this, or {instead}.'
      ) from e
  # A new one, since a builder reads the metadata (splits, class names) when it is made.
  builder = find_builder(data_config)
  if not is_prepared(builder):
    # TFDS takes any folder of this name for a prepared set and does nothing.
    raise DataError(
        f'{builder.data_dir} has no dataset_info.json, so it is an incomplete copy; remove it, or {instead}.')
  return builder


def _refuse_unreachable(builder: tfds.core.DatasetBuilder, manual_dir: Any, instead: str) -> None:
  """Makes `builder` check the server before a download, where TFDS would retry eight times (204 s) without network.

  The hook sits where TFDS has found neither a cached nor a hand-placed archive, because the registered URLs alone do
  not say which of them this configuration needs. Its names are private to TFDS: where they are gone, the failure only
  comes later.
  """
  make_manager = getattr(builder, '_make_download_manager', None)
  url_infos = builder.url_infos or {}
  if make_manager is None:
    return

  def make_checked_manager(*args, **kwargs):
    manager = make_manager(*args, **kwargs)
    download = getattr(manager, '_download', None)
    if download is None:
      return manager

    def checked_download(resource):
      cause = _unreachable(resource.url)
      if cause:
        archive = getattr(url_infos.get(resource.url), 'filename', None)
        others = ' (and its other archives)' if len(url_infos) > 1 else ''
        place = f'put {archive}{others} into {manual_dir}, or ' if archive else ''
        raise DataError(
            f'{builder.info.full_name} is not prepared in {builder.data_dir_root} and {resource.url} cannot be reached '
            f'({cause}); {place}{instead}.')
      return download(resource)

    manager._download = checked_download
    return manager

  builder._make_download_manager = make_checked_manager


def _unreachable(url: str) -> str:
  """Why no server answers at `url`, or '' if one does (whatever it answers)."""
  # As TFDS downloads: with the same library, proxies and certificates.
  import requests

  try:
    requests.head(url, timeout=(3, 10), allow_redirects=True).close()
  except requests.ReadTimeout:
    return ''  # Slow, but there.
  except requests.exceptions.InvalidSchema:
    return ''  # Not http: TFDS has other ways.
  except requests.RequestException as e:
    return type(e).__name__
  return ''


def one_line(message: Any, limit: int = 400) -> str:
  text = re.sub(r'\s+', ' ', str(message)).strip().rstrip('.')
  return text if len(text) <= limit else text[:limit] + '…'
