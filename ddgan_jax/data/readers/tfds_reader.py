"""TFDS: a name of its catalogue in, a reader of the images out, downloaded and written as array_record first if needed.

TFDS imports TensorFlow only while a data set whose preparation needs it is prepared for the first time.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from ddgan_jax.config import ConfigError, DataConfig, UserError
from ddgan_jax.data import images
from ddgan_jax.data.readers import DataError, Reader, stamp


class TfdsReader(Reader):
  """`data.name`, `data.split` of TFDS, prepared in `data.data_dir` first if that has never been done.

  Raises:
    ConfigError: data.name, data.split, data.image_size, data.resize or data.stack does not fit the data.
    DataError: the data cannot be downloaded or prepared on this machine.
  """

  def __init__(self, data_config: DataConfig):
    builder = find_builder(data_config)
    # Before the preparation: a wrong size should not cost a download.
    _check_features(builder, data_config)
    if not is_prepared(builder):
      builder = prepare(builder, data_config)
    features = builder.info.features
    label = features['label'] if 'label' in features else None  # noqa: SIM401, a FeaturesDict has no get
    self.title = f'{data_config.name} ({data_config.split})'
    self.has_labels = label is not None and label.shape == () and np.issubdtype(label.np_dtype, np.integer)
    self.num_classes = getattr(label, 'num_classes', None) if self.has_labels else None
    if self.num_classes is not None:
      self.class_names = tuple(label.names) if label.names else None
    # Other examples under the same version: a builder of one's own, or another copy put there.
    info = os.path.join(builder.data_dir, 'dataset_info.json')
    self.watched = info if os.path.exists(info) else ''
    self._fingerprint = f'{builder.info.full_name} {data_config.split} {stamp(info) if self.watched else ""}'
    self._records = _open_records(builder, data_config)

  def __len__(self) -> int:
    return len(self._records)

  def name(self, i: int) -> str:
    return f'example {i}'

  def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
    return self.read_many([i])[0]

  def read_many(self, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
    # array_record starts threads for each call: one by one, small images would take ten times as long.
    examples = self._records.__getitems__([int(i) for i in indices])
    return [(example['image'], int(example['label']) if self.has_labels else 0) for example in examples]

  def fingerprint(self) -> str:
    return self._fingerprint


def find_builder(data_config: DataConfig) -> tfds.core.DatasetBuilder:
  from ddgan_jax.data import digits  # noqa: F401, importing it registers the name with TFDS.

  data_dir = data_config.data_dir or os.environ.get('TFDS_DATA_DIR', '')
  if '://' in data_dir:
    raise ConfigError(f'data.data_dir: found {data_dir!r}, must be a folder of this machine; copy it here, or mount it')
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
        f'{name} is not prepared in {data_dir}, and TFDS needs tensorflow_io for it, which is not installed; read the '
        f'LMDB itself with --config.data.name=lmdb --config.data.path=FOLDER, or {instead}')
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
          f'{name} could not be prepared in {data_dir}: {type(e).__name__}: {one_line(e)}. Fix this, or {instead}'
      ) from e
  # A new one, since a builder reads the metadata (splits, class names) when it is made.
  builder = find_builder(data_config)
  if not is_prepared(builder):
    # TFDS takes any folder of this name for a prepared set and does nothing.
    raise DataError(
        f'{builder.data_dir} has no dataset_info.json, so it is an incomplete copy; remove it, or {instead}.')
  return builder


def _open_records(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> Any:
  try:
    # Encoded bytes rather than pixels: our decoder converts the channels and resizes in the same pass.
    records = builder.as_data_source(data_config.split, decoders={'image': tfds.decode.SkipDecoding()})
  except NotImplementedError as e:
    raise DataError(
        f'{data_config.name} is stored in {builder.data_dir} as {builder.info.file_format.value}, which has no random '
        'access; move that folder away to have it prepared again as array_record, or use another '
        '--config.data.data_dir') from e
  except ValueError as e:
    raise ConfigError(f'data.split: found {data_config.split!r}, which TFDS refuses: {one_line(e)}') from e
  if not len(records):
    raise ConfigError(f'data.split: found {data_config.split!r}, which holds no images')
  return records


def _check_features(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> None:
  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict) or 'image' not in features:
    found = ', '.join(features) if isinstance(features, tfds.features.FeaturesDict) else str(features)
    raise ConfigError(f"data.name: found {data_config.name!r}, which has no feature 'image', only: {found}")
  image = features['image']
  if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
    raise ConfigError(
        f"data.name: found {data_config.name!r}, whose 'image' is {np.dtype(image.np_dtype).name} {image.shape}; "
        'must be uint8 (H, W, C)')
  height, width, channels = image.shape
  if data_config.stack == 3 and channels != 1:
    raise ConfigError(
        f'data.stack: found 3, which stacks grey images, but those of {data_config.name!r} have {channels} channels; '
        'use a grey set such as `digits` or `mnist`')
  if height and width:
    problem, hint = images.size_problem(height, width, data_config)
    if problem:
      raise ConfigError(f'data.image_size: each image of {data_config.name!r} {problem}; use {hint}')


def _refuse_unreachable(builder: tfds.core.DatasetBuilder, manual_dir: Any, instead: str) -> None:
  """Raises DataError if nothing has been downloaded or placed by hand and no server answers.

  TFDS would try for minutes. Where there is something in its folder of downloads, it may be what is needed.
  """
  import requests

  urls = builder.url_infos or {}
  downloads = manual_dir.parent
  if not urls or any(path.name != 'manual' for path in downloads.glob('*')) or any(manual_dir.glob('*')):
    return
  # One URL of each server: those that are registered need not all be needed.
  for url in {urllib.parse.urlsplit(url).netloc: url for url in reversed(list(urls))}.values():
    try:
      requests.head(url, timeout=(3, 10), allow_redirects=True).close()
      return
    except (requests.ReadTimeout, requests.exceptions.InvalidSchema):
      return  # slow but there, or not http
    except requests.RequestException as e:
      error = e
  raise DataError(
      f'{builder.info.full_name} is not prepared in {builder.data_dir_root} and {url} cannot be reached '
      f'({type(error).__name__}); put {urls[url].filename or "its archive"} into {manual_dir}, or {instead}') from error


def one_line(message: Any, limit: int = 400) -> str:
  text = re.sub(r'\s+', ' ', str(message)).strip().rstrip('.')
  return text if len(text) <= limit else text[:limit] + '…'
