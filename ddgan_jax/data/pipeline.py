"""Pipeline: maps (source, seed, step) to the global batch of that step, and puts this process's rows on its devices.

The permutations of all epochs form one infinite sequence of indices; global batch s uses positions s*B .. (s+1)*B - 1.
All randomness is a function of (seed, stream, epoch or step). So resuming needs no saved cursor, seeking is free, and
the number of processes, threads or workers does not change a batch.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import conditions
from ddgan_jax.data.sources import Source

# Streams of randomness. 0, 1 and 2 permute R, G and B (images that are not stacked use 0); 4, 5 and 6 choose the images
# of a fixed set of stacks.
_FLIP = 3
_STACKS = 4
SUBSET = 7  # the permutation that chooses a subset to measure
SPLITS = 8  # the permutation before the splits of the Inception score
_CONDITION = 9  # the holes of data.condition='mask', by step
_STORED_CONDITION = 10  # and by index of the image


def _random_words(seed: int, stream: int, counter: int, n: int) -> np.ndarray:
  """[n] uint64, a pure function of the arguments.

  Raw words of the counter-based Philox: NumPy guarantees the streams of bit generators, but not those of `Generator`
  methods, and a run that resumes with another NumPy must see the same data.
  """
  return np.random.Philox(np.random.SeedSequence((seed, stream, counter))).random_raw(n)


def _uniforms(seed: int, stream: int, counter: int, n: int) -> np.ndarray:
  """[n] float64 in [0, 1), a pure function of the arguments."""
  return (_random_words(seed, stream, counter, n) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=8)  # three streams, before and after the end of an epoch
def permutation(seed: int, stream: int, epoch: int, n: int) -> np.ndarray:
  """The order of one epoch: a read-only permutation of 0..n-1, [n] int64."""
  order = np.argsort(_random_words(seed, stream, epoch, n), kind='stable')
  order.setflags(write=False)
  return order


def _indices(seed: int, stream: int, n: int, first: int, count: int) -> np.ndarray:
  """Image indices at positions first .. first + count - 1 of the infinite sequence of epochs, [count] int64."""
  parts = []
  while count:
    epoch, offset = divmod(first, n)
    part = permutation(seed, stream, epoch, n)[offset : offset + count]
    parts.append(part)
    first, count = first + len(part), count - len(part)
  return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@functools.lru_cache(maxsize=1)
def fixed_stacks(num_stacks: int, n: int) -> np.ndarray:
  """The grey images of a fixed set of stacks: [3, num_stacks] int64 in 0..n-1, read-only.

  Drawn independently with replacement, and independent of the run's seed, because the set is data. (64 random bits
  modulo n are uniform to 1 part in 2**40 for any n here.)
  """
  stacks = np.stack([_random_words(0, _STACKS + k, 0, num_stacks) % np.uint64(n) for k in range(3)]).astype(np.int64)
  stacks.setflags(write=False)
  return stacks


def epoch_size(source: Source, data_config: DataConfig) -> int:
  """Images (or stacks) in an epoch."""
  return data_config.num_stacks or len(source)


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
  """The rows of a global batch that one process holds. Raises ConfigError if they do not divide evenly."""
  if batch_size % process_count:
    raise ConfigError(f'data.batch_size is {batch_size}; use a multiple of the number of processes, {process_count}')
  rows = batch_size // process_count
  return slice(process_index * rows, (process_index + 1) * rows)


def global_batch(
    source: Source, data_config: DataConfig, seed: int, step: int, rows: slice = slice(None)
) -> dict[str, np.ndarray]:
  """Global batch number `step`, or a contiguous block of its rows: a pure function of (seed, step).

  Each image appears exactly once per epoch, even if the batch size does not divide the size of the set. With
  data.stack=3 each channel is a grey image from its own stream of permutations, and the label is 100a + 10b + c; with
  data.num_stacks=M an epoch is a permutation of a fixed set of M stacks. With data.flip each image (after stacking) is
  mirrored left to right with probability 1/2; data.condition is computed after that. Only the images of `rows` are
  read.

  Args:
    source: returns uint8 images, grey if data.stack is 3; or float32 points, which are not rescaled.
    data_config: uses batch_size (global), flip, stack, num_stacks and condition.
    seed: in 0..2**32-1.
    step: 0, 1, …
    rows: a contiguous block of the global batch; by default all of it.

  Returns:
    {'image': [b, H, W, C] float32 in [-1, 1] (x / 127.5 - 1), 'label': [b] int32}, and with a data.condition
    'condition': [b, *data_config.condition_shape] float32.
  """
  batch_size = data_config.batch_size
  start, stop, _ = rows.indices(batch_size)
  first, count = step * batch_size + start, stop - start
  if data_config.num_stacks:
    chosen = fixed_stacks(data_config.num_stacks, len(source))
    gathered = [source.gather(row) for row in chosen[:, _indices(seed, 0, data_config.num_stacks, first, count)]]
  else:
    indices = [_indices(seed, k, len(source), first, count) for k in range(data_config.stack)]
    gathered = [source.gather(row) for row in indices]
  pixels, label = _joined(gathered)
  flipped = None
  if data_config.flip:
    # Drawn for the whole batch, so that a row's draw does not depend on which process holds it.
    flipped = (_random_words(seed, _FLIP, step, batch_size) >> np.uint64(63)).astype(bool)[start:stop]
    pixels[flipped] = pixels[flipped, :, ::-1]
  image = _scaled(pixels)
  batch = {'image': image, 'label': label.astype(np.int32, copy=False)}
  if source.conditions:
    pair, _ = source.conditions.gather(indices[0])
    if flipped is not None:
      pair[flipped] = pair[flipped, :, ::-1]
    batch['condition'] = _scaled(pair)
  elif data_config.condition_shape:
    uniforms = _uniforms(seed, _CONDITION, step, batch_size * conditions.NUM_UNIFORMS)
    batch['condition'] = conditions.compute(image, data_config, uniforms.reshape(batch_size, -1)[start:stop])
  return batch


def _scaled(pixels: np.ndarray) -> np.ndarray:
  """Maps uint8 0 … 255 to float32 [-1, 1]; returns float32 points and values unchanged."""
  if pixels.dtype != np.uint8:
    return pixels
  image = np.divide(pixels, np.float32(127.5), dtype=np.float32)
  image -= 1
  return image


def stored_images(source: Source, data_config: DataConfig, numbers: np.ndarray) -> np.ndarray:
  """Images in stored order, neither shuffled nor flipped: [n, H, W, C] uint8.

  Args:
    source: see `global_batch`.
    data_config: uses stack and num_stacks.
    numbers: [n] consecutive indices of stored images, of fixed stacks, or of the infinite sequence of stacks.
  """
  return _stored(source, data_config, numbers)[0]


def stored_labels(source: Source, data_config: DataConfig, numbers: np.ndarray) -> np.ndarray:
  """The labels of `stored_images`, [n] int32; all 0 if the set has none."""
  return _stored(source, data_config, numbers)[1]


def stored_numbers(source: Source, data_config: DataConfig, numbers: np.ndarray) -> np.ndarray:
  """Indices of stored images, starting over after the last; with infinitely many stacks, `numbers` themselves."""
  infinite = data_config.stack > 1 and not data_config.num_stacks
  return numbers if infinite else numbers % epoch_size(source, data_config)


def _stored(source: Source, data_config: DataConfig, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  if data_config.num_stacks:
    chosen = fixed_stacks(data_config.num_stacks, len(source))[:, numbers]
  elif data_config.stack == 1:
    chosen = [numbers]
  else:
    chosen = [_indices(0, k, len(source), int(numbers[0]), len(numbers)) for k in range(data_config.stack)]
  return _joined([source.gather(row) for row in chosen])


def _joined(gathered: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels, of one gathered set or of the stacks of three."""
  if len(gathered) == 1:
    return gathered[0]
  (_, a), (_, b), (_, c) = gathered
  return np.concatenate([pixels for pixels, _ in gathered], axis=-1), 100 * a + 10 * b + c


def stored_conditions(source: Source, data_config: DataConfig, numbers: np.ndarray) -> np.ndarray:
  """The conditions of `stored_images`: [n, *data_config.condition_shape] float32; a function of (image, its number)."""
  if source.conditions:
    return _scaled(source.conditions.gather(numbers)[0])
  images = _scaled(stored_images(source, data_config, numbers))
  return conditions.compute(images, data_config, condition_uniforms(numbers))


def condition_uniforms(numbers: np.ndarray) -> np.ndarray:
  """The random numbers of the conditions of stored images, [n, conditions.NUM_UNIFORMS] in [0, 1)."""
  return np.stack([_uniforms(0, _STORED_CONDITION, int(i), conditions.NUM_UNIFORMS) for i in numbers])


def preview(source: Source, data_config: DataConfig, seed: int, count: int = 64) -> np.ndarray:
  """The first n ≤ `count` images of a run, flipped and stacked as in training: [n, H, W, C] uint8; points and values
  float32, in the units of the data.
  """
  count = min(count, epoch_size(source, data_config))
  batch = global_batch(source, dataclasses.replace(data_config, batch_size=count), seed, 0)
  return in_units_of_data(batch['image'], data_config)


def in_units_of_data(images: np.ndarray, data_config: DataConfig) -> np.ndarray:
  """Maps [-1, 1] to uint8 0 … 255, or to float32 in data.value_range; returns points unchanged."""
  if data_config.value_range:
    lowest, highest = data_config.value_range
    return lowest + (images + 1) * np.float32((highest - lowest) / 2)
  return conditions.to_uint8(images) if data_config.is_8_bit else images


def batches(
    source: Source,
    data_config: DataConfig,
    seed: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Prefetches this process's rows of the global batches start_step .. num_steps - 1.

  The rows of all processes, concatenated, are the global batch for any number of processes. Threads prefetch, or
  data.num_workers processes if the source decodes (data.cache = 'none'; for an array, processes would be slower).
  Worker processes import the main script, which must therefore run under `if __name__ == '__main__'`. Close or exhaust
  the iterator to stop threads and workers.

  Args:
    source: see `load_source`.
    data_config: uses batch_size, flip, stack, num_stacks and num_workers.
    seed: in 0..2**32-1.
    start_step: the first step.
    num_steps: one past the last step, train.num_steps.
    process_index: index of this process.
    process_count: number of processes.

  Returns:
    A generator of the dicts of `global_batch`, with b = batch_size / process_count.

  Raises:
    ConfigError: the global batch does not split evenly over the processes.
  """
  rows = process_rows(data_config.batch_size, process_index, process_count)
  make_batch = functools.partial(global_batch, source, data_config, seed, rows=rows)
  num_workers = data_config.num_workers if source.decodes else 0
  num_threads = 2 if num_workers else source.num_threads  # each makes whole batches
  return _iterate(make_batch, start_step, num_steps, num_threads, num_workers)


def _iterate(
    make_batch: Callable[[int], Any], start_step: int, num_steps: int, num_threads: int, num_workers: int
) -> Iterator[Any]:
  if start_step >= num_steps:
    return
  import grain  # slow to import, and `global_batch` does not need it

  dataset = grain.MapDataset.range(start_step, num_steps).map(make_batch)
  dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
  if num_workers:
    from absl import flags

    # Workers copy the parsed flags; outside `absl.app.run` (in a notebook or a test) they are not parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2), worker_init_fn=_init_worker)
  with contextlib.closing(iter(dataset)) as iterator:
    yield from iterator


def _init_worker(index: int, count: int) -> None:
  """Makes a worker ignore signals, and exit with its run.

  Ctrl-C or SIGTERM to the process group must not stop the data of a run that still has to save. A killed run cannot
  stop its workers, so a thread waits for its end.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(process: Any) -> None:
  process.join()
  os._exit(1)  # `sys.exit` would only end this thread


def stack_batches(iterator: Generator[dict[str, np.ndarray]], count: int) -> Iterator[dict[str, np.ndarray]]:
  """Stacks `count` batches at a time along a new leading axis; closes `iterator` when it is closed."""
  with contextlib.closing(iterator):
    while group := list(itertools.islice(iterator, count)):
      yield {name: np.stack([batch[name] for batch in group]) for name in group[0]}


def device_batches(
    iterator: Generator[dict[str, np.ndarray]], sharding: Any, lookahead: int = 2
) -> Iterator[dict[str, Any]]:
  """Copies host-local batches to the devices `lookahead` batches ahead, so that the copy overlaps the training step.

  Args:
    iterator: yields dicts of [b, ...] arrays, this process's rows; closed when this generator ends or is closed.
    sharding: a `jax.sharding.Sharding` of the leading axis, over all processes.
    lookahead: number of batches on the devices besides the one in use.

  Yields:
    The same dicts, as global `jax.Array`s [b * process_count, ...].
  """
  import jax  # decoding workers import this module, and need no backend

  queue: collections.deque = collections.deque()
  with contextlib.closing(iterator):
    for batch in iterator:
      queue.append({name: jax.make_array_from_process_local_data(sharding, leaf) for name, leaf in batch.items()})
      if len(queue) > lookahead:
        yield queue.popleft()
    while queue:
      yield queue.popleft()
