"""data.tfds_reader and data.digits: TFDS catalogue sets, prepared from archives in their original formats."""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import digits, preparation, sources

DIGITS = DataConfig(name='digits', image_size=8, num_channels=1, batch_size=32)


def load(data_dir, **fields):
  return sources.load_source(dataclasses.replace(DIGITS, data_dir=data_dir, **fields))


def expected_digits(split):
  x, y = datasets.load_digits(return_X_y=True)
  # round(v * 255 / 16) in integers.
  x = ((x.astype(int) * 255 + 8) // 16).reshape(-1, 8, 8, 1)
  in_test = np.arange(1797) % 6 == 5
  return (x[in_test], y[in_test]) if split == 'test' else (x[~in_test], y[~in_test])


# digits


@pytest.mark.parametrize('split, size', [('train', 1498), ('test', 299)])
def test_digits_are_sklearns_images_in_order(data_dir, split, size):
  source = load(data_dir, split=split)
  images, labels = source.gather(np.arange(len(source)))
  expected_images, expected_labels = expected_digits(split)
  assert len(source) == size
  assert images.dtype == np.uint8 and labels.dtype == np.int32
  np.testing.assert_array_equal(images, expected_images)
  np.testing.assert_array_equal(labels, expected_labels)
  np.testing.assert_array_equal(source.labels, expected_labels)


def test_digits_splits_are_disjoint_and_complete(data_dir):
  # The counts in scikit-learn's documentation: both splits together are the whole set.
  counts = sum(np.bincount(load(data_dir, split=split).labels) for split in ('train', 'test'))
  assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  train, test = (load(data_dir, split=split).images.reshape(-1, 64).tolist() for split in ('train', 'test'))
  assert not set(map(tuple, train)) & set(map(tuple, test))


def test_tensorflow_is_not_imported(data_dir, tmp_path):
  # Prepares digits from scratch, then reads the prepared set in both ways.
  code = f'''
import sys
from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources
sources.load_source(DataConfig(image_size=8, data_dir={str(tmp_path)!r}))
for cache in ('array', 'none'):
  config = DataConfig(image_size=8, batch_size=8, data_dir={data_dir!r}, cache=cache)
  print(len(list(pipeline.batches(sources.load_source(config), config, 0, 0, 3))), 'tensorflow' in sys.modules)
'''
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.split('\n')[:2] == ['3 False', '3 False']  # Nor a TFDS banner or progress bar before them.
  assert 'WARNING' not in result.stderr and 'examples' not in result.stderr


def test_losing_a_preparation_race_is_not_an_error(tmp_path, monkeypatch):
  prepare = digits.Digits.download_and_prepare

  def prepare_and_lose(self, **kwargs):
    prepare(self, **kwargs)
    raise OSError('Directory not empty')

  monkeypatch.setattr(digits.Digits, 'download_and_prepare', prepare_and_lose)
  assert len(load(str(tmp_path))) == 1498


@pytest.mark.parametrize('fields, message', [
    (dict(image_size=32), r"'digits' is 8x8, which .*'none' cannot make 32x32 .*image_size=8 or .*=pad.*=cover"),
    (dict(image_size=4), r'is 8x8, which .* cannot make 4x4 .*image_size=8 or --config.data.resize=crop '),
    (dict(image_size=4, resize='pad'), r"is 8x8, which data.resize='pad' cannot make 4x4 .*resize=crop"),
    (dict(image_size=32, resize='crop'), r"'crop' cannot make 32x32 .*resize=pad .* or .*resize=cover"),
    (dict(name='cifar10', image_size=32, num_channels=3, stack=3), "data.stack is 3, .*'cifar10' have 3 channels"),
    (dict(name='cifar11'), "data.name is 'cifar11', which TFDS does not know; did you mean 'cifar10"),
    (dict(name='imagenet_resized/33x33'), 'data.name is .*33x33.*32x32'),
    (dict(name='imdb_reviews'), r"data.name is .*has no feature 'image' \(it has text, label\)"),
    (dict(split='training'), "data.split is 'training', .*Should be one of .*'train'"),
    (dict(split='train[:x]'), 'data.split is .*x'),
])
def test_fields_that_do_not_fit_the_set_are_named(data_dir, fields, message):
  with pytest.raises(ConfigError, match=message) as error:
    load(data_dir, **fields)
  assert '\n' not in str(error.value)


def test_a_set_prepared_again_in_place_is_read_again(tmp_path, monkeypatch):
  config = dataclasses.replace(DIGITS, data_dir=str(tmp_path), cache_dir=str(tmp_path / 'cache'))
  assert len(sources.load_source(config)) == 1498
  make = digits.Digits._generate_examples
  monkeypatch.setattr(digits.Digits, '_generate_examples', lambda self, test: list(make(self, test))[:7])
  shutil.rmtree(tmp_path / 'digits')
  digits.Digits(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
  assert len(sources.load_source(config)) == 7


def test_a_different_default_folder_is_different_data(tmp_path, monkeypatch):
  folders = set()
  for name in ('a', 'b'):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / name))
    folders.add(preparation.prepared_folder(DIGITS))
    folders.add(preparation.prepared_folder(dataclasses.replace(DIGITS, data_dir=str(tmp_path / name))))
  assert len(folders) == 2
  monkeypatch.setenv('HOME', str(tmp_path))
  assert preparation.prepared_folder(dataclasses.replace(DIGITS, data_dir='~/a')) in folders


def test_a_bucket_is_refused_at_once(tmp_path, monkeypatch):
  message = "data.data_dir is 'gs://b/x'; use a local folder"
  with pytest.raises(ConfigError, match=message):
    load('gs://b/x', cache_dir=str(tmp_path))
  monkeypatch.setenv('TFDS_DATA_DIR', 'gs://b/x')
  with pytest.raises(ConfigError, match=message):
    load('', cache_dir=str(tmp_path))


def test_sub_splits(data_dir):
  source = load(data_dir, split='train[:100]+test')
  np.testing.assert_array_equal(source.labels, np.r_[expected_digits('train')[1][:100], expected_digits('test')[1]])


# Sets that must be downloaded

CIFAR = DataConfig(name='cifar10', image_size=32, num_channels=3, batch_size=4)
CIFAR_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'


@pytest.fixture
def no_network(monkeypatch):
  """A proxy at a port where nothing listens."""
  for name in ('http_proxy', 'https_proxy'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')
  monkeypatch.setenv('no_proxy', '')


def test_without_a_network_the_error_says_where_to_put_the_archive(tmp_path, no_network):
  with pytest.raises(sources.DataError) as error:
    sources.load_source(dataclasses.replace(CIFAR, data_dir=str(tmp_path)))
  for part in (CIFAR_URL, 'put cifar-10-binary.tar.gz into', str(tmp_path / 'downloads' / 'manual'),
               str(tmp_path / 'cifar10'), '--config.data.data_dir'):
    assert part in str(error.value)


def test_an_archive_placed_by_hand_needs_no_network(tmp_path, no_network):
  """TFDS gets as far as the archive, which is not CIFAR-10."""
  (tmp_path / 'downloads' / 'manual').mkdir(parents=True)
  (tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz').write_bytes(b'no archive')
  with pytest.raises(sources.DataError, match='^cifar10 could not be prepared in .*has wrong checksum'):
    sources.load_source(dataclasses.replace(CIFAR, data_dir=str(tmp_path)))


@pytest.mark.parametrize('name, message', [
    ('celeb_a_hq/256', 'put data256x256.tar into .*manual, or copy a prepared'),
    ('lsun/church_outdoor', 'tensorflow_io.*--config.data.name=lmdb .*copy a prepared lsun/church_outdoor to'),
])
def test_the_error_of_sets_that_need_manual_steps(tmp_path, name, message):
  if name.startswith('lsun'):
    assert importlib.util.find_spec('tensorflow_io') is None
  with pytest.raises(sources.DataError, match=message):
    sources.load_source(DataConfig(name=name, image_size=256, resize='crop', data_dir=str(tmp_path)))


def test_tfrecord_files_are_refused(tmp_path):
  digits.Digits(data_dir=str(tmp_path)).download_and_prepare(file_format='tfrecord')
  with pytest.raises(sources.DataError, match=r'digits is stored in .*1\.0\.0 as tfrecord, .*array_record'):
    load(str(tmp_path))


def test_an_incomplete_copy_is_named(tmp_path):
  (tmp_path / 'digits' / '1.0.0').mkdir(parents=True)
  with pytest.raises(sources.DataError, match=r'digits/1\.0\.0 is an incomplete copy without dataset_info.json'):
    load(str(tmp_path))
