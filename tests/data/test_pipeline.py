"""data.pipeline: the contents of a global batch, and the order of batches."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn import datasets

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import pipeline, sources

DIGITS = DataConfig(name='digits', image_size=8, num_channels=1, batch_size=32)


def numbered(n, width=1):
  """Image i is the constant i (with a mark in its last column if wide) and has label i % 10."""
  images = np.repeat(np.arange(n, dtype=np.uint8)[:, None, None, None], width, axis=2)
  if width > 1:
    images[:, :, -1] = 255
  return sources.ArraySource(images, np.arange(n) % 10)


def pixel(image):
  """The uint8 values of a batch's floats."""
  return np.round((image + 1) * 127.5).astype(int)


# The order of images


def test_each_epoch_is_a_new_permutation_for_any_batch_size():
  source, config = numbered(37), dataclasses.replace(DIGITS, batch_size=8)
  order = np.concatenate([pixel(pipeline.global_batch(source, config, 3, s)['image'])[:, 0, 0, 0] for s in range(14)])
  epochs = order[: 3 * 37].reshape(3, 37)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(37), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  # Not piecewise sorted either: the mean displacement of a random permutation is about n / 3.
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
  # If these numbers change, resumed runs see different images from uninterrupted ones.
  batch = pipeline.global_batch(numbered(100), dataclasses.replace(DIGITS, batch_size=8), 0, 20)
  assert pixel(batch['image'])[:, 0, 0, 0].tolist() == [50, 53, 95, 63, 69, 29, 51, 76]


@pytest.mark.parametrize('stack, flip', [(1, True), (3, True)])
def test_two_processes_split_the_rows_of_one(data_dir, stack, flip):
  config = dataclasses.replace(DIGITS, num_channels=stack, stack=stack, flip=flip, data_dir=data_dir)
  source = sources.load_source(config)
  whole = list(pipeline.batches(source, config, 5, 0, 50))
  halves = [list(pipeline.batches(source, config, 5, 0, 50, i, 2)) for i in range(2)]
  assert len(whole) == 50
  for step, batch in enumerate(whole):
    for name in ('image', 'label'):
      np.testing.assert_array_equal(batch[name], np.concatenate([half[step][name] for half in halves]))


def test_starting_at_a_step_is_the_same_as_iterating_to_it():
  source, config = numbered(100), dataclasses.replace(DIGITS, flip=True)
  late = list(pipeline.batches(source, config, 0, 45, 50))
  early = list(pipeline.batches(source, config, 0, 0, 50))[45:]
  assert len(late) == 5
  for a, b in zip(late, early):
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_array_equal(a['label'], b['label'])


def test_a_finished_run_has_no_batches():
  assert list(pipeline.batches(numbered(100), DIGITS, 0, 7, 7)) == []


def test_a_batch_not_divisible_by_the_processes_is_refused():
  with pytest.raises(ConfigError, match='data.batch_size is 32; use a multiple of the number of processes, 3'):
    pipeline.batches(numbered(10), DIGITS, 0, 0, 1, 0, 3)


# What is in a batch


def test_pixels_are_scaled_to_minus_one_to_one():
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
  assert 0.4 < np.mean(mirrored != (next_step['image'][:, 0, 0, 0] == 1)) < 0.6  # Drawn again each step.
  assert source.images[:, :, 0].max() == 249  # The source's own array is not mirrored in place.


def test_a_stack_has_independent_images_in_channels_and_label():
  source = numbered(200)
  config = dataclasses.replace(DIGITS, num_channels=3, stack=3, batch_size=200)
  batch = pipeline.global_batch(source, config, 0, 0)
  index = pixel(batch['image'])[:, 0, 0, :]
  np.testing.assert_array_equal(np.sort(index, axis=0), np.arange(200)[:, None].repeat(3, 1))
  np.testing.assert_array_equal(batch['label'], index % 10 @ [100, 10, 1])
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert np.mean(index[:, a] == index[:, b]) < 0.1


def test_stacked_digits_have_the_labels_of_their_images(data_dir):
  config = dataclasses.replace(DIGITS, num_channels=3, stack=3, data_dir=data_dir)
  source = sources.load_source(config)
  assert source.image_shape == (8, 8, 1)
  x, y = datasets.load_digits(return_X_y=True)
  image_labels = {image.tobytes(): label for image, label in zip(((x.astype(int) * 255 + 8) // 16).astype(np.uint8), y)}
  batch = pipeline.global_batch(source, config, 0, 7)
  for image, label in zip(pixel(batch['image']).astype(np.uint8), batch['label']):
    a, b, c = (image_labels[image[..., channel].tobytes()] for channel in range(3))
    assert label == 100 * a + 10 * b + c


def test_fixed_stacks_come_once_per_epoch_for_any_seed():
  source = numbered(200)
  config = dataclasses.replace(DIGITS, num_channels=3, stack=3, num_stacks=48, batch_size=32)

  def epoch(seed, steps):
    batches = [pipeline.global_batch(source, config, seed, step) for step in steps]
    pixels = np.concatenate([pixel(batch['image'])[:, 0, 0] for batch in batches])
    labels = np.concatenate([batch['label'] for batch in batches])
    np.testing.assert_array_equal(labels, pixels % 10 @ [100, 10, 1])
    return [tuple(row) for row in pixels]

  two_epochs = epoch(0, range(3))
  assert two_epochs[:48] != two_epochs[48:] and sorted(two_epochs[:48]) == sorted(two_epochs[48:])
  assert len(set(two_epochs)) == 48
  other_seed = epoch(1, range(3))
  assert sorted(other_seed[:48]) == sorted(two_epochs[:48]) and other_seed != two_epochs
  assert pipeline.epoch_size(source, config) == 48
  # Pinned, because a different draw would be a different data set.
  assert pipeline.fixed_stacks(120_000, 60_000)[:, :2].tolist() == [[11014, 37117], [26619, 24782], [31462, 32796]]


def test_device_batches_read_ahead_and_close():
  read, closed = [], []

  def host():
    try:
      for step in range(6):
        read.append(step)
        yield {'image': np.full((8, 2, 2, 1), step, np.float32), 'label': np.arange(8, dtype=np.int32) + step}
    finally:
      closed.append(True)

  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  everything = list(pipeline.device_batches(host(), sharding))
  assert [int(batch['label'][0]) for batch in everything] == [0, 1, 2, 3, 4, 5]
  assert everything[3]['image'].sharding == sharding and float(everything[3]['image'].mean()) == 3
  assert closed == [True]

  read.clear()
  iterator = pipeline.device_batches(host(), sharding, lookahead=2)
  next(iterator)
  assert read == [0, 1, 2]
  iterator.close()
  assert closed == [True, True]


def test_workers_survive_signals_to_the_process_group():
  """Ctrl-C reaches the workers too, but their run still has to save."""
  with contextlib.closing(pipeline._iterate(functools.partial(np.full, 4), 0, 200, 2, 1)) as batches:
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
      os.kill(worker.pid, number)
    assert [batch[0] for batch in batches] == list(range(1, 200))
  worker.join(20)
  assert not worker.is_alive()


def test_workers_exit_when_their_run_is_killed():
  script = """
import functools, multiprocessing, time
import numpy as np
from ddgan_jax.data import pipeline
if __name__ == '__main__':
  found = pipeline._iterate(functools.partial(np.full, 4), 0, 10**9, 2, 2)
  next(found)
  print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
  time.sleep(600)
"""
  run = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
  workers = [int(pid) for pid in run.stdout.readline().split()]
  run.kill()
  assert len(workers) == 2
  try:
    run.communicate(timeout=20)  # until no process holds the pipe
  except subprocess.TimeoutExpired:
    for pid in workers:
      os.kill(pid, signal.SIGKILL)
    pytest.fail('the workers outlived the run')
