"""Several processes on this machine, by the real command: the same run as one, on any number of devices."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.runs import workdir as workdir_lib
from ddgan_jax.runs.checkpoints import Checkpoints
from tests import support
from tests.support import ROOT

STEPS = 60


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """Starts the command in `processes` processes of `devices` devices each; returns [(process, its output)].

  Only with `events` does it write losses that can be read back.
  """
  folder = tmp_path_factory.mktemp('processes')
  (folder / 'tiny.py').write_text(support.config_text(support.quick_config_dict()))
  started = []

  def start(workdir, processes, devices, *flags, own=None, events=False):
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    group = []
    for index in range(processes):
      together = [] if processes == 1 else [
          f'--coordinator_address=localhost:{port}', f'--num_processes={processes}', f'--process_id={index}']
      output = folder / f'{len(started)}.txt'
      with output.open('w') as file:
        group.append((subprocess.Popen(
            [sys.executable, '-m', 'ddgan_jax.main', '--config', str(folder / 'tiny.py'), '--workdir',
             str(workdir[index] if isinstance(workdir, list) else workdir),
             f'--config.data.data_dir={folder / "data"}', f'--config.train.num_steps={STEPS}', *flags, *together,
             *(own or {}).get(index, ())],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env=support.command_environment(devices, tensorflow=events)), output))
      started.append(group[-1][0])
    return group

  yield start
  for process in started:
    if process.poll() is None:
      process.kill()


def finish(group, timeout=900):
  """Waits for all; returns their statuses and outputs."""
  return [process.wait(timeout) for process, _ in group], [output.read_text() for _, output in group]


def wait_for(group, text, timeout=900):
  """Returns when process 0 has printed `text`."""
  deadline = time.monotonic() + timeout
  process, output = group[0]
  while text not in output.read_text():
    assert process.poll() is None and time.monotonic() < deadline, output.read_text()
    time.sleep(0.02)


def losses(workdir):
  """[steps, 2] of the events; of a step that was done twice the later one."""
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  events = EventAccumulator(str(workdir), size_guidance={'tensors': 0}).Reload()
  found = [{event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
           for tag in ('loss/d', 'loss/g')]
  return {step: np.array([found[0][step], found[1][step]]) for step in found[0]}


def parameters(workdir):
  config = config_lib.from_json((workdir / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = Checkpoints(workdir).restore(train_state.abstract(config, device), STEPS)
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.g_params, state.d_params))])


@pytest.fixture(scope='module')
def never_moved(start, tmp_path_factory):
  """The workdir of one process with 8 devices, with checkpoints 10, 20, …, 60."""
  workdir = tmp_path_factory.mktemp('runs') / 'eight'
  statuses, outputs = finish(start(
      workdir, 1, 8, '--config.train.checkpoint_every=10', '--config.train.keep_checkpoints=9',
      events=True))
  assert statuses == [0], outputs
  return workdir


def test_two_processes_with_four_devices_each_are_one_with_eight(never_moved, start, tmp_path):
  flags = ('eval_every=20', 'checkpoint_every=10', 'keep_checkpoints=1')
  evaluation = ('metrics=modes', 'num=64', 'batch_size=64', 'force=True')
  statuses, outputs = finish(start(
      tmp_path / 'run', 2, 4, *(f'--config.train.{flag}' for flag in flags),
      *(f'--config.eval.{flag}' for flag in evaluation), events=True))
  assert statuses == [0, 0], outputs
  checkpoints = Checkpoints(tmp_path / 'run')
  distances = {step: float(value) for step, value in re.findall(
      r'step (\d+): n = 64;(?:.*\n)*?  Fréchet distance, not FID +([\d.]+)', outputs[0])}
  assert [*distances] == ['20', '40', '60'] and '20: n = 64' not in outputs[1]
  assert {*map(str, checkpoints.steps())} == {'60', min(distances, key=distances.get)}
  expected, found = losses(never_moved), losses(tmp_path / 'run')
  assert sorted(found) == list(range(1, STEPS + 1))
  np.testing.assert_allclose([found[s] for s in range(1, 31)], [expected[s] for s in range(1, 31)], rtol=1e-4)
  np.testing.assert_allclose(parameters(tmp_path / 'run'), parameters(never_moved), atol=1e-3)
  # Process 0 alone writes and talks.
  assert len(list((tmp_path / 'run').glob('events.out.tfevents.*'))) == 1
  assert 'Finished 60 steps' in outputs[0] and 'step ' not in outputs[1]


def test_moved_from_eight_devices_to_two_processes_and_to_one_device(never_moved, start, tmp_path):
  """And told to stop in between, by a SIGTERM to one of the two: both save the same step and end well."""
  workdir = tmp_path / 'run'
  (workdir / 'checkpoints').mkdir(parents=True)
  shutil.copy(never_moved / 'config.json', workdir)
  shutil.copytree(never_moved / 'checkpoints' / '10', workdir / 'checkpoints' / '10')
  shutil.copytree(never_moved / 'checkpoints' / '20', workdir / 'checkpoints' / '20')
  for file in (workdir / 'checkpoints' / '20' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')

  # Slow enough to be stopped on the way; the state in parts that lie in both processes.
  group = start(workdir, 2, 2, '--config.train.checkpoint_every=1', '--config.parallel.fsdp=4', events=True)
  wait_for(group, 'step 15/')
  group[1][0].send_signal(signal.SIGTERM)
  statuses, outputs = finish(group)
  assert statuses == [0, 0], outputs
  assert '20: its list of arrays cannot be read; going back to step 10.' in outputs[0]
  assert 'Resumed at step 10' in outputs[0]
  stopped = Checkpoints(workdir).latest_step()
  assert 15 <= stopped < STEPS and f'SIGTERM: saved step {stopped} in' in outputs[0]

  statuses, outputs = finish(start(workdir, 1, 1, events=True))
  assert statuses == [0] and f'Resumed at step {stopped}' in outputs[0], outputs
  expected, found = losses(never_moved), losses(workdir)
  np.testing.assert_allclose([found[s] for s in range(11, 31)], [expected[s] for s in range(11, 31)], rtol=1e-4)
  np.testing.assert_allclose(parameters(workdir), parameters(never_moved), atol=1e-3)


def test_stopped_before_the_first_step(never_moved, start, tmp_path):
  """A run that goes on and is pre-empted while it compiles leaves after the step that it can take."""
  workdir = tmp_path / 'run'
  shutil.copytree(never_moved, workdir, ignore=shutil.ignore_patterns('20', '30', '40', '50', '60', 'events*'))
  group = start(workdir, 2, 1)
  wait_for(group, 'Compiling')
  group[1][0].send_signal(signal.SIGTERM)
  statuses, outputs = finish(group)
  assert statuses == [0, 0], outputs
  stopped = Checkpoints(workdir).latest_step()
  assert 10 < stopped < 20 and f'SIGTERM: saved step {stopped} in' in outputs[0], outputs


def test_a_second_run_is_refused_on_all_processes(start, tmp_path):
  (tmp_path / 'run').mkdir()
  with workdir_lib.locked(str(tmp_path / 'run')):
    statuses, outputs = finish(start(tmp_path / 'run', 2, 1))
  assert statuses == [2, 2] and 'another run is using it (process ' in outputs[0], outputs


def test_a_workdir_that_is_not_shared_is_refused(start, tmp_path):
  """Each process has a folder of its own under the same name, as hosts with local disks have."""
  links = []
  for index in range(2):
    (tmp_path / f'host{index}').mkdir()
    links.append(tmp_path / f'host{index}' / 'run')
  statuses, outputs = finish(start(links, 2, 1))
  assert statuses == [2, 2] and 'process 1 does not see what process 0 writes there' in outputs[0], outputs


def test_different_configs_are_refused(start, tmp_path):
  statuses, outputs = finish(start(tmp_path / 'run', 2, 1, own={1: ['--config.seed=1']}))
  assert statuses == [2, 2] and 'the config must be the same on all processes' in outputs[0], outputs


def test_one_of_two_processes_is_killed(never_moved, start, tmp_path):
  """The other one ends too, with an error, and the same command goes on."""
  workdir = tmp_path / 'run'
  shutil.copytree(never_moved, workdir, ignore=shutil.ignore_patterns('30', '40', '50', '60', 'events*'))
  group = start(workdir, 2, 2, '--config.train.checkpoint_every=1')
  wait_for(group, 'step 25/')
  group[1][0].kill()
  statuses, outputs = finish(group)
  assert statuses[0] != 0 and statuses[1] == -signal.SIGKILL, outputs
  latest = Checkpoints(workdir).latest_step()
  statuses, outputs = finish(start(workdir, 1, 1))
  assert statuses == [0] and f'Resumed at step {latest}' in outputs[0], outputs
  np.testing.assert_allclose(parameters(workdir), parameters(never_moved), atol=1e-3)
