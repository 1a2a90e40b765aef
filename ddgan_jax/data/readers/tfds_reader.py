"""Reader of TFDS data sets, which are downloaded and written as array_record on first use.

TFDS imports TensorFlow only to prepare the data sets that need it.
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
  """Split data.split of the TFDS data set data.name, prepared in data.data_dir on first use.

  Raises:
    ConfigError: data.name, data.split, data.image_size, data.resize or data.stack does not fit the data.
    DataError: the data cannot be downloaded or prepared on this machine.
  """

  def __init__(self, data_config: DataConfig):
    builder = find_builder(data_config)
    # Before the preparation, so that a wrong size costs no download.
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
    # The same version may have other examples, from a custom builder or another copy.
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
    # One call, because array_record starts threads for each; one image per call takes ten times as long.
    examples = self._records.__getitems__([int(i) for i in indices])
    return [(example['image'], int(example['label']) if self.has_labels else 0) for example in examples]

  def fingerprint(self) -> str:
    return self._fingerprint


def find_builder(data_config: DataConfig) -> tfds.core.DatasetBuilder:
  from ddgan_jax.data import digits  # noqa: F401, registers the data set with TFDS

  data_dir = data_config.data_dir or os.environ.get('TFDS_DATA_DIR', '')
  if '://' in data_dir:
    raise ConfigError(f'data.data_dir is {data_dir!r}; use a local folder (copy or mount it first)')
  try:
    return tfds.builder(data_config.name, data_dir=os.path.expanduser(data_config.data_dir) or None)
  except tfds.core.DatasetNotFoundError as e:
    # TFDS's own message hides its suggestion below the list of all names.
    names = tfds.list_builders(with_community_datasets=False)  # the community's list would be downloaded
    close = difflib.get_close_matches(data_config.name.split('/')[0], names, n=1)
    hint = f'did you mean {close[0]!r}?' if close else 'use digits or a name of the TFDS catalogue'
    raise ConfigError(f'data.name is {data_config.name!r}, which TFDS does not know; {hint}') from e
  except Exception as e:  # a bad config or version, unreadable metadata, …
    raise ConfigError(f'data.name is {data_config.name!r}, which TFDS cannot open: {one_line(e)}') from e


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  # If the set is not prepared, TFDS warns of a "variant folder without dataset_info.json".
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return builder.is_prepared()
  finally:
    logging.set_verbosity(verbosity)


def prepare(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> tfds.core.DatasetBuilder:
  """Downloads and writes array_record files; returns a builder that reads them. Raises DataError."""
  name, data_dir = data_config.name, builder.data_dir_root
  manual_dir = data_dir / 'downloads' / 'manual'
  instead = f'copy a prepared {name} to {builder.data_dir}, or set --config.data.data_dir to its folder'
  if builder.name == 'lsun' and importlib.util.find_spec('tensorflow_io') is None:
    # TFDS would only fail after a download of up to 43 GiB.
    raise DataError(
        f'{name} is not prepared in {data_dir}, and TFDS needs tensorflow_io for it, which is not installed; read the '
        f'LMDB directly with --config.data.name=lmdb --config.data.path=FOLDER, or {instead}')
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    archive = getattr(builder.builder_config, 'file_name', '')
    if not (manual_dir / archive).exists() or not any(manual_dir.iterdir()):
      raise DataError(
          f'{name} is not prepared in {data_dir}, and TFDS cannot download it: put {archive or "its archive"} into '
          f'{manual_dir}, or {instead}. Instructions of TFDS: {one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}')
  quiet = contextlib.ExitStack()
  if builder.name == 'digits':
    # Half a second of local work, for which TFDS would print bars and banners.
    quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
    quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
  _refuse_unreachable(builder, manual_dir, instead)
  try:
    with quiet:
      builder.download_and_prepare(
          file_format='array_record', download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except Exception as e:
    # If two processes prepare the same set, the second fails to rename its folder, but the data of the first is there.
    if not is_prepared(builder):
      if isinstance(e, UserError):
        raise
      raise DataError(
          f'{name} could not be prepared in {data_dir}: {type(e).__name__}: {one_line(e)}. Fix this, or {instead}'
      ) from e
  # A new builder, because the constructor reads the metadata (splits, class names).
  builder = find_builder(data_config)
  if not is_prepared(builder):
    # TFDS takes any folder of this name for a prepared set.
    raise DataError(
        f'{builder.data_dir} is an incomplete copy without dataset_info.json; remove it, or {instead}')
  return builder


def _open_records(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> Any:
  try:
    # Encoded bytes: our decoder converts the channels and resizes in the same pass.
    records = builder.as_data_source(data_config.split, decoders={'image': tfds.decode.SkipDecoding()})
  except NotImplementedError as e:
    raise DataError(
        f'{data_config.name} is stored in {builder.data_dir} as {builder.info.file_format.value}, which has no random '
        'access; move that folder away, so that it is prepared again as array_record, or use another '
        '--config.data.data_dir') from e
  except ValueError as e:
    raise ConfigError(f'data.split is {data_config.split!r}, which TFDS rejects: {one_line(e)}') from e
  if not len(records):
    raise ConfigError(f'data.split is {data_config.split!r}, which has no images; use another split')
  return records


def _check_features(builder: tfds.core.DatasetBuilder, data_config: DataConfig) -> None:
  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict) or 'image' not in features:
    found = ', '.join(features) if isinstance(features, tfds.features.FeaturesDict) else str(features)
    raise ConfigError(f"data.name is {data_config.name!r}, which has no feature 'image' (it has {found})")
  image = features['image']
  if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
    raise ConfigError(
        f"data.name is {data_config.name!r}, whose 'image' is {np.dtype(image.np_dtype).name} {image.shape}; use a "
        'set with uint8 (H, W, C)')
  height, width, channels = image.shape
  if data_config.stack == 3 and channels != 1:
    raise ConfigError(
        f'data.stack is 3, but the images of {data_config.name!r} have {channels} channels; use a grey set such as '
        'digits or mnist')
  if height and width:
    problem, hint = images.size_problem(height, width, data_config)
    if problem:
      raise ConfigError(f'data.image_size: each image of {data_config.name!r} {problem}; use {hint}')


def _refuse_unreachable(builder: tfds.core.DatasetBuilder, manual_dir: Any, instead: str) -> None:
  """Raises DataError if TFDS's download folder is empty and no server answers; TFDS would retry for minutes."""
  import requests

  urls = builder.url_infos or {}
  downloads = manual_dir.parent
  if not urls or any(path.name != 'manual' for path in downloads.glob('*')) or any(manual_dir.glob('*')):
    return
  # One URL per server, because not every registered URL is needed.
  for url in {urllib.parse.urlsplit(url).netloc: url for url in reversed(list(urls))}.values():
    try:
      requests.head(url, timeout=(3, 10), allow_redirects=True).close()
      return
    except (requests.ReadTimeout, requests.exceptions.InvalidSchema):
      return  # a slow server, or not HTTP
    except requests.RequestException as e:
      error = e
  raise DataError(
      f'{builder.info.full_name} is not prepared in {builder.data_dir_root} and {url} cannot be reached '
      f'({type(error).__name__}); put {urls[url].filename or "its archive"} into {manual_dir}, or {instead}') from error


def one_line(message: Any, limit: int = 400) -> str:
  text = re.sub(r'\s+', ' ', str(message)).strip().rstrip('.')
  return text if len(text) <= limit else text[:limit] + '…'
