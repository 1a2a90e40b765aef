"""The order of the data does not depend on the number of processes, devices and decoding workers."""

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
from PIL import Image

from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources
from tests.support import ROOT, xla_flags

RANGES = ((0, 2), (1000, 1001))
STEPS = (0, 1, 1000)
N = 37

# The data pipeline of a run's process, without the training.
PROCESS = '''
import sys
import jax
import numpy as np
from ddgan_jax.parallel import sharding
from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources

def main(index, count, port, out, steps, fields):
  if count > 1:
    jax.distributed.initialize(f'localhost:{port}', count, index)
  assert jax.device_count() == 8 and jax.process_count() == count
  config = DataConfig(**fields)
  arrays = {}
  for num_workers in (0, 1, 2, 'array', 'mapped'):
    decodes = isinstance(num_workers, int)
    change = {'num_workers': num_workers} if decodes else {'cache': 'array'}
    sources.MAX_BYTES_IN_MEMORY = 0 if num_workers == 'mapped' else 2**30
    config = DataConfig(**{**fields, **change})
    source = sources.load_source(config)
    assert source.decodes == decodes
    for first, last in steps:
      host = pipeline.batches(source, config, 7, first, last, index, count)
      batches = pipeline.device_batches(host, sharding.batch_sharding(sharding.make_mesh()))
      for step, batch in zip(range(first, last), batches, strict=True):
        for name, array in batch.items():
          assert array.shape[0] == config.batch_size
          for shard in array.addressable_shards:
            arrays[f'{num_workers} {step} {name} {shard.index[0].start or 0}'] = np.asarray(shard.data)
  np.savez(out, **arrays)

if __name__ == '__main__':
  index, count, port = map(int, sys.argv[1:4])
  main(index, count, port, sys.argv[4], *eval(sys.argv[5]))
'''


def read_batches(folder, config, count):
  """Global batches held by `count` processes with 8 devices in total: {(workers or cache, step, name): array}."""
  (folder / 'process.py').write_text(PROCESS)
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  env = {**os.environ, 'XLA_FLAGS': xla_flags(8 // count),
         'PYTHONPATH': str(ROOT)}
  outs = [folder / f'{count}_{index}.npz' for index in range(count)]
  processes = [
      subprocess.Popen([sys.executable, str(folder / 'process.py'), str(index), str(count), str(port), str(out),
                        repr((RANGES, dataclasses.asdict(config)))], env=env) for index, out in enumerate(outs)]
  assert [process.wait(timeout=300) for process in processes] == [0] * count
  shards = {}
  for out in outs:
    for key, shard in np.load(out).items():
      workers, step, name, start = key.split(' ')
      shards.setdefault((workers, int(step), name), {})[int(start)] = shard
  for pieces in shards.values():
    assert len(pieces) == 8
  return {key: np.concatenate([pieces[start] for start in sorted(pieces)]) for key, pieces in shards.items()}


def test_batches_do_not_depend_on_processes_devices_or_workers(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(N):
    path = tmp_path / 'photos' / f'class {i % 3}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
  config = DataConfig(
      name='folder', path=str(tmp_path / 'photos'), image_size=8, resize='crop', batch_size=16, flip=True, cache='none',
      cache_dir=str(tmp_path / 'cache'))
  source = sources.load_source(config)
  in_memory = sources.load_source(dataclasses.replace(config, cache='array'))
  one, two = read_batches(tmp_path, config, 1), read_batches(tmp_path, config, 2)
  assert set(one) == set(two) and len(one) == 5 * len(STEPS) * 2
  for step in STEPS:
    expected = pipeline.global_batch(source, config, 7, step)
    for workers in ('0', '1', '2', 'array', 'mapped'):
      for name in ('image', 'label'):
        np.testing.assert_array_equal(one[workers, step, name], expected[name])
        np.testing.assert_array_equal(two[workers, step, name], expected[name])
  assert not np.array_equal(one['0', 0, 'image'], one['0', 1, 'image'])

  # An epoch is a permutation. All images differ, so their bytes identify them.
  plain = dataclasses.replace(config, flip=False)
  index_of = {image.tobytes(): i for i, image in enumerate(in_memory.images)}
  assert len(index_of) == N
  batches = [pipeline.global_batch(source, plain, 7, step)['image'] for step in range(3 * N // 16 + 1)]
  pixels = np.round((np.concatenate(batches) + 1) * 127.5).astype(np.uint8)
  epochs = np.array([index_of[image.tobytes()] for image in pixels])[:3 * N].reshape(3, N)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(N), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3
