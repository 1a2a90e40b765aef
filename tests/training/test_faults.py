"""Faults during a run: kills, full disks, clock jumps, non-finite losses. test_checkpoints.py damages checkpoints;
test_processes.py runs several processes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ddgan_jax import train_state
from ddgan_jax.config import UserError
from ddgan_jax.data import pipeline
from ddgan_jax.data.readers import DataError
from ddgan_jax.metrics import evaluator
from ddgan_jax.parallel import sharding
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs import workdir
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop, results
from tests.support import ROOT, command_environment, programs


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def run(quick_config, data_dir, capsys, monkeypatch):
  """Trains 30 steps in this process; returns the output."""
  # On one device, because sums over simulated devices depend on the order of their threads.
  one_device = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, 'make_mesh', lambda **_: one_device)
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  programs.share(monkeypatch)

  def run(workdir, **fields):
    fields = {'num_steps': 30, 'checkpoint_every': 10, 'log_every': 5, 'sample_every': 1000, **fields}
    config = dataclasses.replace(
        quick_config, data=dataclasses.replace(quick_config.data, data_dir=str(data_dir)),
        train=dataclasses.replace(quick_config.train, **fields))
    try:
      loop.train_and_evaluate(config, str(workdir))
    finally:
      run.printed = capsys.readouterr().out
    return run.printed

  return run


def final_state(workdir, config):
  replicated = sharding.replicated(sharding.make_mesh())
  state = Checkpoints(workdir).restore(train_state.abstract_state(config, replicated), 30)
  return state.replace(rng=jax.random.key_data(state.rng))


def assert_same_final_state(one, other, config):
  jax.tree.map(np.testing.assert_array_equal, final_state(one, config), final_state(other, config))


def poison(monkeypatch, is_bad):
  """Replaces the images of some global batches with NaN; returns a function that undoes it."""
  clean = pipeline.global_batch

  def poisoned(source, data_config, seed, step, rows=slice(None)):
    batch = clean(source, data_config, seed, step, rows)
    return batch | {'image': batch['image'] * np.float32(np.nan)} if is_bad(step) else batch

  monkeypatch.setattr(pipeline, 'global_batch', poisoned)
  return lambda: monkeypatch.setattr(pipeline, 'global_batch', clean)


def make_report(**values):
  """A report as `evaluator` makes it."""
  return {'images': 'samples', 'n': 100, 'reference': None, 'n_reference': None, 'biased': True,
          'metrics': {name: {'value': value, 'features': 'none'} for name, value in values.items()}}


@pytest.fixture
def evaluate(monkeypatch):
  """Replaces the evaluation of runs by a function of their images."""
  return lambda function: monkeypatch.setattr(evaluator, 'make_data_evaluator', lambda *args: function)


def test_resuming_with_other_metrics_or_none(run, tmp_path, evaluate):
  """Both best checkpoints are kept, because different metrics are not comparable."""
  evaluate(lambda images: make_report(fid={'step 6': 5.0, 'step 12': 9.0}[images.name]))
  run(tmp_path / 'run', num_steps=12, eval_every=6)
  evaluate(lambda images: make_report(kid={'step 18': 0.1, 'step 24': 0.2}[images.name]))
  assert 'Finished 24 steps' in run(tmp_path / 'run', num_steps=24, eval_every=6, checkpoint_every=3)
  assert Checkpoints(tmp_path / 'run').steps() == [6, 18, 21, 24]
  assert 'Finished 30 steps' in run(tmp_path / 'run', checkpoint_every=3)
  assert Checkpoints(tmp_path / 'run').steps() == [6, 18, 27, 30]


def test_a_failed_evaluation_loses_no_step(run, tmp_path, evaluate, quick_config):
  """It fails after every restart; the run still advances, and only its last evaluation is missing."""
  def out_of_memory(images):
    raise MemoryError('RESOURCE_EXHAUSTED: no memory for the features')

  evaluate(out_of_memory)
  for step in (15, 30, 30):
    with pytest.raises(MemoryError, match='no memory for the features'):
      run(tmp_path / 'run', eval_every=15, checkpoint_every=100)
    assert Checkpoints(tmp_path / 'run').latest_step() == step
  assert 'All 30 steps are done; still missing: its evaluation.' in run.printed
  evaluate(lambda images: make_report(fid=3.0))
  run(tmp_path / 'uninterrupted', eval_every=15)
  assert_same_final_state(tmp_path / 'run', tmp_path / 'uninterrupted', quick_config)


def test_a_data_error_loses_no_step(run, tmp_path, monkeypatch):
  """The steps before the unreadable batch are saved, although no checkpoint was due."""
  clean = pipeline.global_batch

  def fail(source, data_config, seed, step, rows=slice(None)):
    if step >= 17:
      raise DataError('photos: 17.png is gone')
    return clean(source, data_config, seed, step, rows)

  monkeypatch.setattr(pipeline, 'global_batch', fail)
  with pytest.raises(DataError, match='17.png is gone'):
    run(tmp_path / 'run')
  assert 10 < Checkpoints(tmp_path / 'run').latest_step() <= 17


def test_a_failed_sample_grid_loses_no_step(run, tmp_path, monkeypatch):
  """Whether or not a checkpoint is due at the step."""
  def no_memory(*args):
    def sample(ema_params):
      raise RuntimeError('RESOURCE_EXHAUSTED: no memory for the noise')

    return sample

  with monkeypatch.context() as patch:
    patch.setattr(results, 'make_sample_fn', no_memory)
    for step in (15, 30):
      with pytest.raises(RuntimeError, match='no memory for the noise'):
        run(tmp_path / 'run', sample_every=15)
      assert Checkpoints(tmp_path / 'run').latest_step() == step
  printed = run(tmp_path / 'run', sample_every=15)
  assert 'All 30 steps are done; still missing: its sample grid.' in printed and 'Compiling' not in printed
  assert f'Finished 30 steps in {tmp_path / "run"}; its last sample grid is' in printed
  assert os.listdir(tmp_path / 'run' / 'samples') == ['step_00000030.png']


def test_a_signal_during_the_last_evaluation(run, tmp_path, evaluate):
  """The same command adds the missing evaluation, once."""
  def interrupted(images):
    os.kill(os.getpid(), signal.SIGTERM)
    images.rows(0, 4)

  evaluate(interrupted)
  printed = run(tmp_path / 'run', eval_every=30)
  assert 'SIGTERM: saved the last step, 30, in' in printed and 'the same command adds its evaluation.' in printed
  assert 'Finished' not in printed and Checkpoints(tmp_path / 'run').metrics(30) == {}
  evaluate(lambda images: make_report(fid=3.0))
  assert 'Finished 30 steps' in run(tmp_path / 'run', eval_every=30)
  assert Checkpoints(tmp_path / 'run').metrics(30) == {'eval/fid': 3.0}
  evaluate(lambda images: pytest.fail('measured again'))
  assert 'has finished its 30 steps' in run(tmp_path / 'run', eval_every=30)
  # A finished run stays finished, even if its grids or metrics are deleted.
  shutil.rmtree(tmp_path / 'run' / 'samples')
  (tmp_path / 'run' / 'checkpoints' / '30' / 'metrics.json').unlink()
  assert 'has finished its 30 steps' in run(tmp_path / 'run', eval_every=30)


def test_a_signal_during_an_evaluation(run, tmp_path, monkeypatch):
  """The evaluation is abandoned, the step is saved, and the same command resumes."""
  def interrupted(images):
    os.kill(os.getpid(), signal.SIGTERM)
    images.rows(0, 4)
    pytest.fail('measured all the same')

  monkeypatch.setattr(evaluator, 'make_data_evaluator', lambda *args: interrupted)
  printed = run(tmp_path / 'run', eval_every=15)
  assert 'SIGTERM: saved step 15 in' in printed and Checkpoints(tmp_path / 'run').latest_step() == 15
  assert 'Finished 30 steps' in run(tmp_path / 'run')


def test_a_rollback_skips_the_bad_batches(run, tmp_path, monkeypatch, quick_config):
  """Batch 13 is poisoned. The result is that of a run with clean data that skips the same batches."""
  restore_data = poison(monkeypatch, lambda batch: batch == 13)
  with pytest.raises(UserError, match=r'loss_d, .* not finite at step 14; the last good checkpoint is step 10; '):
    run(tmp_path / 'run')
  printed = run(tmp_path / 'run', on_nonfinite='rollback')
  assert ('not finite at step 14: rolled back to step 10, skipping global batches 10 to 13 (rollback 1 of 3 to this '
          'step; ' in printed)
  assert 'Finished 30 steps' in printed
  restore_data()
  (tmp_path / 'clean').mkdir()
  (tmp_path / 'clean' / 'skipped.json').write_text((tmp_path / 'run' / 'skipped.json').read_text())
  assert json.loads((tmp_path / 'run' / 'skipped.json').read_text()) == [{'step': 10, 'batches': 4}]
  assert 'back to' not in run(tmp_path / 'clean')
  assert_same_final_state(tmp_path / 'run', tmp_path / 'clean', quick_config)


def test_rollbacks_without_progress_stop_the_run(run, tmp_path, monkeypatch):
  poison(monkeypatch, lambda batch: batch >= 12)
  with pytest.raises(UserError, match='not finite at step 11, again after 3 rollbacks to step 10; the data'):
    run(tmp_path / 'run', on_nonfinite='rollback')
  assert run.printed.count('back to step 10, skipping') == 3
  assert 'skipping global batches 14 to 14 (rollback 3 of 3' in run.printed
  assert Checkpoints(tmp_path / 'run').steps() == [10]


def test_a_full_disk_and_then_a_read_only_one(run, tmp_path, monkeypatch, quick_config):
  """A file system of 8 MiB fills up before the second checkpoint; the first stays valid, and the run resumes."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(disk)], capture_output=True).returncode:
    pytest.skip('may not mount a small file system here')
  try:
    save = Checkpoints.save

    def fill_and_save(self, state, *rest):
      if int(state.step) == 20:
        self.wait()
        with pytest.raises(OSError, match='No space left'), open(disk / 'filler', 'wb') as file:
          while True:
            file.write(bytes(4096))
            file.flush()
      save(self, state, *rest)

    monkeypatch.setattr(Checkpoints, 'save', fill_and_save)
    with pytest.raises(UserError, match='no space left on device; the last good checkpoint is step 10; free some'):
      run(disk / 'run')
    with pytest.raises(UserError, match='no space left on device; free some space, or use another --workdir'):
      run(disk / 'run')
    (disk / 'filler').unlink()
    monkeypatch.setattr(Checkpoints, 'save', save)
    assert 'Resumed at step 10' in run(disk / 'run')
    run(tmp_path / 'uninterrupted')
    assert_same_final_state(disk / 'run', tmp_path / 'uninterrupted', quick_config)
    assert not list((disk / 'run' / 'checkpoints').glob('*tmp*'))

    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    with pytest.raises(UserError, match=r'run: cannot be written to \(Read-only file system\); use another'):
      run(disk / 'run', num_steps=40)
    assert 'has finished its 30 steps' in run(disk / 'run')
  finally:
    subprocess.run(['umount', '-l', str(disk)], check=False)


def test_clock_jumps_and_unwritable_events_are_harmless(run, tmp_path, monkeypatch, quick_config):
  """Ten years back at every checkpoint, and file times in the wrong order: only steps count."""
  save, real = Checkpoints.save, time.time
  offset = [0.0]

  def jump_and_save(self, state, *rest):
    offset[0] -= 10 * 365 * 86_400
    save(self, state, *rest)

  class Locked:
    def __getattr__(self, name):
      raise OSError(13, 'Permission denied')

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'save', jump_and_save)
    patch.setattr(time, 'time', lambda: real() + offset[0])
    patch.setattr(tensorboard, '_open_writer', lambda workdir: Locked())
    printed = run(tmp_path / 'run', num_steps=20)
  assert printed.count('TensorBoard events could not be written ([Errno 13] Permission denied); the run') == 1
  for step, when in ((10, 2e9), (20, 1e9)):
    os.utime(tmp_path / 'run' / 'checkpoints' / str(step), (when, when))
  folder = tmp_path / 'run' / 'checkpoints'
  assert Checkpoints(tmp_path / 'run').steps() == [10, 20] and folder.is_dir()
  assert 'Resumed at step 20' in run(tmp_path / 'run')
  assert Checkpoints(tmp_path / 'run').steps() == [20, 30]


def test_the_lock_is_released_when_its_process_dies(tmp_path):
  holder = subprocess.Popen(
      [sys.executable, '-c', 'import sys, time\nfrom ddgan_jax.runs import workdir\n'
       'with workdir.locked(sys.argv[1]):\n  print("held", flush=True)\n  time.sleep(600)', str(tmp_path)],
      cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert holder.stdout.readline() == 'held\n'
  with pytest.raises(workdir.WorkdirError, match=f'another run is using it .process {holder.pid} on '), \
      workdir.locked(str(tmp_path)):
    pass
  holder.kill()
  holder.wait()
  with workdir.locked(str(tmp_path)):
    pass


def test_a_run_killed_at_random_ends_with_the_same_bits(tmp_path, data_dir):
  """The short form of launch/kill_test.py, which kills a hundred times."""
  result = subprocess.run(
      [sys.executable, 'launch/kill_test.py', '--kills', '2', '--steps', '200', '--checkpoint_every', '20', '--folder',
       str(tmp_path / 'runs'), '--data_dir', str(data_dir), '--', '--config.generator.kind=mlp',
       '--config.discriminator.kind=mlp'],
      cwd=ROOT, capture_output=True, text=True, env=command_environment())
  assert result.returncode == 0, result.stdout + result.stderr
  assert 'arrays of step 200 are bit-identical' in result.stdout and '\n2 kills in ' in result.stdout
