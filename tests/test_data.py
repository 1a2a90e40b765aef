"""Tests of ddgan_jax.data: digits, sources and the pipeline."""

import dataclasses
import importlib.util
import io
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import digits, pipeline, preparation, sources

DIGITS = DataConfig(name='digits', image_size=8, num_channels=1, batch_size=32)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A TFDS directory in which `digits` has been prepared from scratch."""
  path = str(tmp_path_factory.mktemp('tfds'))
  sources.load_source(dataclasses.replace(DIGITS, data_dir=path))
  return path


def load(data_dir, **fields):
  return sources.load_source(dataclasses.replace(DIGITS, data_dir=data_dir, **fields))


def numbered(n, width=1):
  """Image i is the constant i (with a mark in its last column if wide), label i % 10."""
  images = np.repeat(np.arange(n, dtype=np.uint8)[:, None, None, None], width, axis=2)
  if width > 1:
    images[:, :, -1] = 255
  return sources.ArraySource(images, np.arange(n) % 10)


def pixel(image):
  """The uint8 values that a batch's floats stand for."""
  return np.round((image + 1) * 127.5).astype(int)


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


def test_digits_splits_share_no_image_and_miss_none(data_dir):
  # The counts of scikit-learn's documentation of the data, so that both splits together are the whole set.
  counts = sum(np.bincount(load(data_dir, split=split).labels) for split in ('train', 'test'))
  assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  train, test = (load(data_dir, split=split).images.reshape(-1, 64).tolist() for split in ('train', 'test'))
  assert not set(map(tuple, train)) & set(map(tuple, test))


def test_tensorflow_is_not_imported(data_dir, tmp_path):
  # Prepares digits anew, then reads the prepared set in both ways.
  code = f'''
import sys
from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources
sources.load_source(DataConfig(image_size=8, data_dir={str(tmp_path)!r}))
config = DataConfig(image_size=8, batch_size=8, data_dir={data_dir!r})
for limit in (2**30, 0):
  sources.MAX_BYTES_IN_MEMORY = limit
  print(len(list(pipeline.batches(sources.load_source(config), config, 0, 0, 3))), 'tensorflow' in sys.modules)
'''
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.split('\n')[:2] == ['3 False', '3 False']  # And no banner or bar of TFDS before them.
  assert 'WARNING' not in result.stderr and 'examples' not in result.stderr


def test_losing_the_race_to_prepare_is_no_error(tmp_path, monkeypatch):
  prepare = digits.Digits.download_and_prepare

  def lose(self, **kwargs):
    prepare(self, **kwargs)
    raise OSError('Directory not empty')

  monkeypatch.setattr(digits.Digits, 'download_and_prepare', lose)
  assert len(load(str(tmp_path))) == 1498


# The order of images


def test_each_epoch_is_another_permutation_when_the_batch_does_not_divide_it():
  source, config = numbered(37), dataclasses.replace(DIGITS, batch_size=8)
  order = np.concatenate([pixel(pipeline.global_batch(source, config, 3, s)['image'])[:, 0, 0, 0] for s in range(14)])
  epochs = order[: 3 * 37].reshape(3, 37)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(37), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  # Not sorted in pieces either: the mean displacement of a random permutation is about n / 3.
  assert np.abs(epochs - np.arange(37)).mean() > 37 / 6


def test_a_batch_larger_than_the_set_spans_epochs():
  batch = pipeline.global_batch(numbered(5), dataclasses.replace(DIGITS, batch_size=12), 0, 2)
  order = pixel(batch['image'])[:, 0, 0, 0]
  # Positions 24..35: the last of epoch 4, epochs 5 and 6, the first of epoch 7.
  assert sorted(order[1:6]) == sorted(order[6:11]) == [0, 1, 2, 3, 4]


def test_the_seed_changes_the_order():
  a, b = (pipeline.global_batch(numbered(200), DIGITS, seed, 0)['image'] for seed in (0, 1))
  assert np.mean(a != b) > 0.5


def test_the_order_is_pinned():
  # A change of these numbers means that resumed runs see other images than they would have.
  batch = pipeline.global_batch(numbered(100), dataclasses.replace(DIGITS, batch_size=8), 0, 20)
  assert pixel(batch['image'])[:, 0, 0, 0].tolist() == [50, 53, 95, 63, 69, 29, 51, 76]


@pytest.mark.parametrize('stack, flip', [(1, True), (3, True)])
def test_two_processes_hold_the_rows_of_one(data_dir, stack, flip):
  config = dataclasses.replace(DIGITS, num_channels=stack, stack=stack, flip=flip, data_dir=data_dir)
  source = sources.load_source(config)
  whole = list(pipeline.batches(source, config, 5, 0, 50))
  halves = [list(pipeline.batches(source, config, 5, 0, 50, i, 2)) for i in range(2)]
  assert len(whole) == 50
  for step, batch in enumerate(whole):
    for name in ('image', 'label'):
      np.testing.assert_array_equal(batch[name], np.concatenate([half[step][name] for half in halves]))


def test_starting_at_a_step_is_the_same_as_iterating_to_it(data_dir):
  source, config = load(data_dir), dataclasses.replace(DIGITS, flip=True)
  late = list(pipeline.batches(source, config, 0, 45, 50))
  early = list(pipeline.batches(source, config, 0, 0, 50))[45:]
  assert len(late) == 5
  for a, b in zip(late, early):
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_array_equal(a['label'], b['label'])


def test_a_finished_run_has_no_batches(data_dir):
  assert list(pipeline.batches(load(data_dir), DIGITS, 0, 7, 7)) == []


def test_worker_processes_give_the_same_batches_as_memory(data_dir, monkeypatch):
  in_memory = list(pipeline.batches(load(data_dir), DIGITS, 1, 0, 6))
  monkeypatch.setattr(sources, 'MAX_BYTES_IN_MEMORY', 0)
  source = load(data_dir)
  assert isinstance(source, sources.RecordSource) and source.labels is None
  for num_workers in (0, 1):
    config = dataclasses.replace(DIGITS, num_workers=num_workers)
    decoded = list(pipeline.batches(source, config, 1, 0, 6))
    assert len(decoded) == 6
    for a, b in zip(decoded, in_memory):
      np.testing.assert_array_equal(a['image'], b['image'])
      np.testing.assert_array_equal(a['label'], b['label'])


def test_a_batch_that_does_not_split_is_refused():
  with pytest.raises(ConfigError, match='data.batch_size: found 32, must be a multiple of the 3 processes'):
    pipeline.batches(numbered(10), DIGITS, 0, 0, 1, 0, 3)


# What is in a batch


def test_pixels_become_minus_one_to_one():
  images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
  batch = pipeline.global_batch(sources.ArraySource(images), dataclasses.replace(DIGITS, batch_size=3), 0, 0)
  assert batch['image'].dtype == np.float32
  np.testing.assert_allclose(np.sort(batch['image'].ravel()), [-1, -0.6, 1], atol=1e-7)
  assert batch['label'].tolist() == [0, 0, 0] and batch['label'].dtype == np.int32


def test_flip_mirrors_about_half_and_changes_nothing_else():
  source, config = numbered(250, width=3), dataclasses.replace(DIGITS, batch_size=1000)
  plain = pipeline.global_batch(source, config, 0, 0)
  config = dataclasses.replace(config, flip=True)
  flipped, next_step = (pipeline.global_batch(source, config, 0, step) for step in (0, 1))
  np.testing.assert_array_equal(plain['label'], flipped['label'])
  mirrored = flipped['image'][:, 0, 0, 0] == 1
  np.testing.assert_array_equal(flipped['image'][~mirrored], plain['image'][~mirrored])
  np.testing.assert_array_equal(flipped['image'][mirrored], plain['image'][mirrored][:, :, ::-1])
  assert 420 < mirrored.sum() < 580  # Five standard deviations.
  assert 0.4 < np.mean(mirrored != (next_step['image'][:, 0, 0, 0] == 1)) < 0.6  # Drawn anew each step.
  assert source.images[:, :, 0].max() == 249  # The source's own array is not mirrored in place.


def test_stack_puts_independent_images_into_the_channels_and_the_label():
  source = numbered(200)
  config = dataclasses.replace(DIGITS, num_channels=3, stack=3, batch_size=200)
  batch = pipeline.global_batch(source, config, 0, 0)
  index = pixel(batch['image'])[:, 0, 0, :]
  np.testing.assert_array_equal(np.sort(index, axis=0), np.arange(200)[:, None].repeat(3, 1))
  np.testing.assert_array_equal(batch['label'], index % 10 @ [100, 10, 1])
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert np.mean(index[:, a] == index[:, b]) < 0.1


def test_stack_of_digits_agrees_with_the_set(data_dir):
  config = dataclasses.replace(DIGITS, num_channels=3, stack=3, data_dir=data_dir)
  source = sources.load_source(config)
  assert source.image_shape == (8, 8, 1)
  images, labels = expected_digits('train')
  label_of = {image.tobytes(): label for image, label in zip(images.astype(np.uint8), labels)}
  batch = pipeline.global_batch(source, config, 0, 7)
  for image, label in zip(pixel(batch['image']).astype(np.uint8), batch['label']):
    a, b, c = (label_of[image[..., channel].tobytes()] for channel in range(3))
    assert label == 100 * a + 10 * b + c


def test_device_batches_look_ahead_and_close():
  pulled, closed = [], []

  def host():
    try:
      for step in range(6):
        pulled.append(step)
        yield {'image': np.full((8, 2, 2, 1), step, np.float32), 'label': np.arange(8, dtype=np.int32) + step}
    finally:
      closed.append(True)

  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  everything = list(pipeline.device_batches(host(), sharding))
  assert [int(batch['label'][0]) for batch in everything] == [0, 1, 2, 3, 4, 5]
  assert everything[3]['image'].sharding == sharding and float(everything[3]['image'].mean()) == 3
  assert closed == [True]

  pulled.clear()
  iterator = pipeline.device_batches(host(), sharding, lookahead=2)
  next(iterator)
  assert pulled == [0, 1, 2]
  iterator.close()
  assert closed == [True, True]


# Sizes and channels


class Records(list):
  """Decoded images in the place of an array_record file."""

  def __getitems__(self, keys):
    return [{'image': self[key]} for key in keys]


def resized(image, size, resize, channels=1):
  config = dataclasses.replace(DIGITS, image_size=size, resize=resize, num_channels=channels)
  source = sources.RecordSource(Records([image]), False, config, (size, size, channels), None)
  images, labels = source.gather(np.array([0]))
  assert labels.tolist() == [0]
  return images[0]


def test_crop_takes_the_centre_of_the_longer_side():
  image = np.arange(4 * 8, dtype=np.uint8).reshape(4, 8, 1)
  np.testing.assert_array_equal(resized(image, 4, 'crop'), image[:, 2:6])
  np.testing.assert_array_equal(resized(image.transpose(1, 0, 2), 4, 'crop'), image.transpose(1, 0, 2)[2:6])


def test_crop_shrinks_without_aliasing():
  checkers = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
  # Taking every fourth pixel would give 0 or 255 throughout.
  assert np.abs(resized(checkers, 8, 'crop')[1:-1, 1:-1].astype(int) - 127.5).max() < 8


def test_crop_enlarges(data_dir):
  small, large = load(data_dir), load(data_dir, image_size=32, resize='crop')
  assert large.image_shape == (32, 32, 1)
  means = large.images.reshape(-1, 8, 4, 8, 4).mean((2, 4))
  assert np.abs(means - small.images[..., 0]).mean() < 12  # Of 255: the same pictures.


def test_pad_centres_on_black(data_dir):
  small, padded = load(data_dir).images, load(data_dir, image_size=12, resize='pad').images
  np.testing.assert_array_equal(padded[:, 2:10, 2:10], small)
  assert padded.sum(dtype=np.int64) == small.sum(dtype=np.int64)


def test_grey_becomes_rgb_and_rgb_becomes_grey(data_dir):
  grey, rgb = load(data_dir).images, load(data_dir, num_channels=3).images
  np.testing.assert_array_equal(rgb, np.repeat(grey, 3, axis=-1))
  red = np.zeros((4, 4, 3), np.uint8)
  red[..., 0] = 255
  assert set(resized(red, 4, 'none').ravel()) == {76}  # ITU-R 601: 0.299 * 255.


@pytest.mark.parametrize('fields, message', [
    (dict(image_size=32), r"data.image_size: found 32 .*'digits' are 8x8; data.image_size=8, .*'crop' .*'pad'"),
    (dict(image_size=4), r"data.image_size: found 4 .* 8x8; data.image_size=8, or data.resize='crop' \([^)]*\) would"),
    (dict(image_size=4, resize='pad'), r"data.resize: found 'pad', which never shrinks.*data.resize='crop'"),
    (dict(name='cifar10', image_size=32, num_channels=3, stack=3), "data.stack: found 3, .*'cifar10' have 3 channels"),
    (dict(name='cifar11'), "data.name: found 'cifar11', which TFDS does not know; did you mean 'cifar10"),
    (dict(name='imagenet_resized/33x33'), 'data.name: .*33x33.*32x32'),
    (dict(name='imdb_reviews'), "data.name: .*has no feature 'image', only: text, label"),
    (dict(split='training'), "data.split: found 'training', but the splits of 'digits' are: train, test"),
    (dict(split='train[:x]'), 'data.split: found .*x'),
])
def test_what_does_not_fit_is_refused_by_name(data_dir, fields, message):
  with pytest.raises(ConfigError, match=message) as error:
    load(data_dir, **fields)
  assert '\n' not in str(error.value)


def test_sub_splits(data_dir):
  source = load(data_dir, split='train[:100]+test')
  np.testing.assert_array_equal(source.labels, np.r_[expected_digits('train')[1][:100], expected_digits('test')[1]])


# Data sets that have to be downloaded

CIFAR = DataConfig(name='cifar10', image_size=32, num_channels=3, batch_size=4)
CIFAR_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'


@pytest.fixture
def no_network(monkeypatch):
  monkeypatch.setattr(preparation, '_unreachable', lambda url: 'ConnectionError')


def test_without_network_the_message_says_what_to_place_where(tmp_path, no_network):
  start = time.monotonic()
  with pytest.raises(sources.DataError) as error:
    sources.load_source(dataclasses.replace(CIFAR, data_dir=str(tmp_path)))
  assert time.monotonic() - start < 10
  for part in (CIFAR_URL, 'put cifar-10-binary.tar.gz into', str(tmp_path / 'downloads' / 'manual'),
               str(tmp_path / 'cifar10'), '--config.data.data_dir'):
    assert part in str(error.value)


def test_a_refused_connection_counts_as_unreachable():
  # Port 9 of this machine: no network needed to be refused.
  assert preparation._unreachable('http://127.0.0.1:9/x') == 'ConnectionError'


@pytest.mark.parametrize('name, message', [
    ('celeb_a_hq/256', 'put data256x256.tar into .*manual, or copy a prepared'),
    ('lsun/church_outdoor', 'tensorflow_io.*copy a prepared lsun/church_outdoor to'),
])
def test_sets_that_cannot_be_prepared_say_so(tmp_path, name, message):
  if name.startswith('lsun'):
    assert importlib.util.find_spec('tensorflow_io') is None
  with pytest.raises(sources.DataError, match=message):
    sources.load_source(DataConfig(name=name, image_size=256, resize='crop', data_dir=str(tmp_path)))


def test_tfrecord_has_no_random_access(tmp_path):
  digits.Digits(data_dir=str(tmp_path)).download_and_prepare(file_format='tfrecord')
  with pytest.raises(sources.DataError, match=r'digits lies in .*1\.0\.0 as tfrecord, .*array_record'):
    load(str(tmp_path))


def test_an_incomplete_copy_is_named(tmp_path):
  (tmp_path / 'digits' / '1.0.0').mkdir(parents=True)
  with pytest.raises(sources.DataError, match=r'digits/1\.0\.0 has no dataset_info.json.*remove it'):
    load(str(tmp_path))


def write_cifar_archive(path, rng):
  """An archive in CIFAR-10's layout of 4 images a file; returns the (images, labels) of its five training files."""
  images = rng.integers(0, 256, (6, 4, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, (6, 4), np.uint8)
  files = {f'data_batch_{i + 1}.bin': i for i in range(5)} | {'test_batch.bin': 5}
  contents = {name: b''.join(
      bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images[i], labels[i]))
              for name, i in files.items()}
  contents['batches.meta.txt'] = '\n'.join(f'class{i}' for i in range(10)).encode()
  path.parent.mkdir(parents=True)
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in contents.items():
      info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return images[:5].reshape(20, 32, 32, 3), labels[:5].ravel()


def test_cifar10_from_a_hand_placed_archive(tmp_path, monkeypatch, no_network):
  pytest.importorskip('tensorflow', reason='TFDS unpacks archives with TensorFlow')
  archive = tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz'
  images, labels = write_cifar_archive(archive, np.random.default_rng(0))
  config = dataclasses.replace(CIFAR, data_dir=str(tmp_path))
  with pytest.raises(sources.DataError, match='could not be prepared.*NonMatchingChecksumError.*wrong checksum'):
    sources.load_source(config)

  # From here on, the small archive is the one that TFDS expects.
  from tensorflow_datasets.core.download import checksums
  url_infos = tfds.builder_cls('cifar10').url_infos
  monkeypatch.setitem(url_infos, CIFAR_URL, checksums.compute_url_info(archive))
  source = sources.load_source(config)
  assert (len(source), source.image_shape, source.num_classes) == (20, (32, 32, 3), 10)
  batch = pipeline.global_batch(source, dataclasses.replace(config, batch_size=20), 0, 0)
  # TFDS shuffles on disk and the pipeline again: compare as sets of (image, label).
  read = {(image.tobytes(), int(label)) for image, label in zip(pixel(batch['image']).astype(np.uint8), batch['label'])}
  assert read == {(image.tobytes(), int(label)) for image, label in zip(images, labels)}
  grey = sources.load_source(dataclasses.replace(config, num_channels=1))
  luma = source.images @ np.array([0.299, 0.587, 0.114])
  assert np.abs(grey.images[..., 0] - luma).max() <= 1
