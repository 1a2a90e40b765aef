"""Workdirs in a bucket: the same code through epath, with a local folder in place of the bucket."""

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
  """epath's local back end, with a folder in place of `gs://`."""

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
  state = train_state.abstract_state(tiny_config, sharding.replicated(sharding.make_mesh()))
  workdir.check_workdir(run, tiny_config, checkpoints)
  workdir.check_space(run, tiny_config, checkpoints, state)
  with workdir.locked(run):
    workdir.write_description(run, tiny_config, state)
    workdir.check_workdir(run, tiny_config, checkpoints)
    assert grid_path(run, 7) == run + '/samples/step_00000007.png'
    grids.save_png(grid_path(run, 7), np.zeros((4, 4, 3), np.uint8))
    sentence = SkippedBatches(run).roll_back(10, Diverged('loss_d', 14), write=True)
  assert sentence == ('loss_d not finite at step 14: rolled back to step 10, skipping global batches 10 to 13 '
                      f'(rollback 1 of 3 to this step; {run}/skipped.json).')
  assert SkippedBatches(run).batch(10) == 14
  (bucket / 'runs' / 'tiny' / 'checkpoints' / '8').mkdir(parents=True)
  checkpoints._rename_damaged(8, print)
  (bucket / 'runs' / 'tiny' / 'checkpoints' / '8').mkdir()
  checkpoints._rename_damaged(8, print)
  assert sorted(str(path.relative_to(bucket)) for path in bucket.rglob('*') if not path.is_dir()) == [
      f'runs/tiny/{name}' for name in ('config.json', 'parameters.txt', 'samples/step_00000007.png', 'skipped.json')]
  assert sorted(path.name for path in bucket.glob('runs/tiny/checkpoints/*')) == ['8.damaged', '8.damaged2']
  assert sorted(os.listdir(bucket.parent)) == ['bucket']  # and nothing in a local folder named gs:

  (bucket / 'runs' / 'tiny' / 'checkpoints').rename(bucket / 'kept')
  other = dataclasses.replace(tiny_config, seed=1)
  workdir.check_workdir(run, other, checkpoints)  # without a checkpoint, any config may start


def test_data_in_a_bucket_are_refused():
  with pytest.raises(DataError, match="data.path: gs://bucket/photos is not a local path; copy or mount it"):
    sources.load_source(DataConfig(name='folder', path='gs://bucket/photos', image_size=8))


def test_an_unwritable_bucket_is_refused(quick_config, monkeypatch):
  """Whatever error its library raises."""
  class Closed(Bucket):
    def __getattr__(self, name):
      def call(*arguments, **options):
        raise RuntimeError('PermissionDenied: no such right\nlong trace')
      return call

  monkeypatch.setattr(gpath._GPath, '_backend', Closed('/nowhere'))
  with pytest.raises(workdir.WorkdirError, match=r'^gs://bucket/run: cannot be written to \(PermissionDenied: no such'):
    workdir.check_space('gs://bucket/run', quick_config, None, None)


def test_steps_after_a_rollback_skip_batches(tmp_path):
  skipped = SkippedBatches(str(tmp_path))
  assert list(skipped.ranges(3, 30)) == [(3, 30)]
  skipped.roll_back(10, Diverged('loss_d', 14), write=True)
  skipped.roll_back(20, Diverged('loss_d', 21), write=True)
  for batches in (skipped, SkippedBatches(str(tmp_path))):
    assert list(batches.ranges(3, 30)) == [(3, 10), (14, 24), (25, 35)]
    assert list(batches.ranges(10, 30)) == [(14, 24), (25, 35)]
    assert list(batches.ranges(25, 30)) == [(30, 35)]
    assert list(batches.ranges(30, 30)) == []
    numbers = [batch for first, last in batches.ranges(0, 30) for batch in range(first, last)]
    assert numbers == [batches.batch(step) for step in range(30)] == sorted(set(range(35)) - {10, 11, 12, 13, 24})
