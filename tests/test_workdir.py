"""Workdirs and data in a bucket: the same code, by epath, with a folder of this machine in the bucket's place."""

import dataclasses
import os

import numpy as np
import pytest
from etils.epath import backend, gpath

from ddgan_jax import train_state
from ddgan_jax.config import DataConfig
from ddgan_jax.data import sources
from ddgan_jax.data.readers import DataError
from ddgan_jax.parallel import sharding
from ddgan_jax.reporting import grids
from ddgan_jax.runs import workdir
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.runs.workdir import grid_path
from ddgan_jax.training.rollback import Diverged, SkippedBatches


class Bucket:
  """epath's local back end, with `gs://` standing for a folder."""

  def __init__(self, folder):
    self._folder = str(folder)
    self._local = backend._OsPathBackend()

  def __getattr__(self, name):
    def call(*arguments, **options):
      arguments = [os.fspath(a) if isinstance(a, os.PathLike) else a for a in arguments]
      found = getattr(self._local, name)(
          *(a.replace('gs://', self._folder + '/') if isinstance(a, str) else a for a in arguments), **options)
      if name == 'glob':
        return [path.replace(self._folder + '/', 'gs://') for path in found]
      return found

    return call


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(gpath._GPath, '_backend', Bucket(tmp_path))
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'bucket'


def test_a_workdir_in_a_bucket(bucket, tiny_config):
  run = 'gs://bucket/runs/tiny'
  checkpoints = Checkpoints(run)
  assert str(checkpoints.folder) == run + '/checkpoints' and checkpoints.steps() == []
  state = train_state.abstract(tiny_config, sharding.replicated(sharding.make_mesh()))
  workdir.check_workdir(run, tiny_config, checkpoints)
  workdir.check_space(run, tiny_config, checkpoints, state)
  with workdir.locked(run):
    workdir.write_description(run, tiny_config, state)
    workdir.check_workdir(run, tiny_config, checkpoints)
    assert grid_path(run, 7) == run + '/samples/step_00000007.png'
    grids.save_png(grid_path(run, 7), np.zeros((4, 4, 3), np.uint8))
    sentence = SkippedBatches(run).roll_back(10, Diverged('loss_d', 14), write=True)
  assert sentence == ('loss_d not finite at step 14: back to step 10, skipping global batches 10 to 13 '
                      f'(rollback 1 of 3 to this step; {run}/skipped.json).')
  assert SkippedBatches(run).batch(10) == 14
  (bucket / 'runs' / 'tiny' / 'checkpoints' / '8').mkdir(parents=True)
  checkpoints._set_aside(8, print)
  (bucket / 'runs' / 'tiny' / 'checkpoints' / '8').mkdir()
  checkpoints._set_aside(8, print)
  assert sorted(str(path.relative_to(bucket)) for path in bucket.rglob('*') if not path.is_dir()) == [
      f'runs/tiny/{name}' for name in ('config.json', 'parameters.txt', 'samples/step_00000007.png', 'skipped.json')]
  assert sorted(path.name for path in bucket.glob('runs/tiny/checkpoints/*')) == ['8.damaged', '8.damaged2']
  assert sorted(os.listdir(bucket.parent)) == ['bucket']  # and nothing in a local folder named gs:

  (bucket / 'runs' / 'tiny' / 'checkpoints').rename(bucket / 'kept')
  other = dataclasses.replace(tiny_config, seed=1)
  workdir.check_workdir(run, other, checkpoints)  # without a checkpoint any config may begin


def test_data_in_a_bucket(bucket, tmp_path):
  """Copied once; what is new, changed or gone in the bucket is so here, and what it cannot give is one sentence."""
  colours, said = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}, []
  for number, (name, colour) in enumerate(colours.items()):
    grids.save_png(bucket / 'photos' / name / '1.png', np.full((8, 8, 3), colour, np.uint8))
    os.utime(bucket / 'photos' / name / '1.png', (1e9 + number, 1e9 + number))
  data = DataConfig(name='folder', path='gs://bucket/photos', image_size=8, cache_dir=str(tmp_path / 'cache'))

  def load():
    said.clear()
    source = sources.load_source(data, said.append)
    images, labels = source.gather(np.arange(len(source)))
    return [(source.class_names[label], *image[0, 0]) for image, label in zip(images, labels, strict=True)]

  assert load() == [('blue', 0, 0, 255), ('green', 0, 255, 0), ('red', 255, 0, 0)]
  assert said[0].startswith('Copying 3 of 3 files (0.0 MiB) of gs://bucket/photos to ')
  assert len(load()) == 3 and not any(text.startswith('Copying') for text in said)
  grids.save_png(bucket / 'photos' / 'green' / '1.png', np.full((8, 8, 3), (0, 128, 0), np.uint8))
  (bucket / 'photos' / 'blue' / '1.png').unlink()
  assert load() == [('green', 0, 128, 0), ('red', 255, 0, 0)]
  assert said[0].startswith('Copying 1 of 2 files')

  np.savez(bucket / 'images.npz', images=np.zeros((5, 8, 8, 3), np.uint8))
  assert len(sources.load_source(dataclasses.replace(data, name='npz', path='gs://bucket/images.npz'))) == 5
  with pytest.raises(DataError, match='data.path: gs://bucket/none cannot be copied to .*No such file'):
    sources.load_source(dataclasses.replace(data, path='gs://bucket/none'))
  with pytest.raises(DataError, match="data.cache_dir: found 'gs://bucket/cache', must be a folder of this machine"):
    sources.load_source(dataclasses.replace(data, cache_dir='gs://bucket/cache'))
  assert sorted(os.listdir(tmp_path)) == ['bucket', 'cache']  # and nothing in a local folder named gs:


def test_a_bucket_that_cannot_be_written_to(quick_config, monkeypatch):
  """Whatever kind of error its library has."""
  class Closed(Bucket):
    def __getattr__(self, name):
      def call(*arguments, **options):
        raise RuntimeError('PermissionDenied: no such right\nlong trace')
      return call

  monkeypatch.setattr(gpath._GPath, '_backend', Closed('/nowhere'))
  with pytest.raises(workdir.WorkdirError, match=r'^gs://bucket/run: cannot be written to \(PermissionDenied: no such'):
    workdir.check_space('gs://bucket/run', quick_config, None, None)


def test_which_batch_a_step_sees(tmp_path):
  skipped = SkippedBatches(str(tmp_path))
  assert list(skipped.ranges(3, 30)) == [(3, 30)]
  skipped.roll_back(10, Diverged('loss_d', 14), write=True)
  skipped.roll_back(20, Diverged('loss_d', 21), write=True)
  for again in (skipped, SkippedBatches(str(tmp_path))):
    assert list(again.ranges(3, 30)) == [(3, 10), (14, 24), (25, 35)]
    assert list(again.ranges(10, 30)) == [(14, 24), (25, 35)]
    assert list(again.ranges(25, 30)) == [(30, 35)]
    assert list(again.ranges(30, 30)) == []
    seen = [batch for first, last in again.ranges(0, 30) for batch in range(first, last)]
    assert seen == [again.batch(step) for step in range(30)] == sorted(set(range(35)) - {10, 11, 12, 13, 24})
