"""Several processes on this machine, by the real command: the same run as one, on any number of devices."""

import json
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
from ddgan_jax.config.checks import CONDITION_METRICS
from ddgan_jax.runs import ema_snapshots
from ddgan_jax.runs import workdir as workdir_lib
from ddgan_jax.runs.checkpoints import Checkpoints
from tests import support
from tests.support import ROOT, scalars

STEPS = 40


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


@pytest.fixture(scope='module')
def command(tmp_path_factory):
  """The command line of a run, and its flags."""
  folder = tmp_path_factory.mktemp('processes')
  (folder / 'tiny.py').write_text(support.config_text(support.quick_config_dict()))
  return lambda workdir, *flags: [
      sys.executable, '-m', 'ddgan_jax.main', '--config', str(folder / 'tiny.py'), '--workdir', str(workdir),
      f'--config.data.data_dir={folder / "data"}', f'--config.train.num_steps={STEPS}', *flags]


@pytest.fixture
def start(tmp_path):
  """Starts a command line in `processes` processes of `devices` devices each; returns [(process, its output)]."""
  started = []

  def start(command, processes, devices, together='--coordinator_address={} --num_processes={} --process_id={}'):
    address = f'localhost:{free_port()}'
    group = []
    for index in range(processes):
      own = together.format(address, processes, index).split() if processes > 1 else []
      output = tmp_path / f'{len(started)}.txt'
      with output.open('w') as file:
        group.append((subprocess.Popen(
            [*command, *own], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env=support.command_environment(devices, events='scalars')), output))
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


def losses(workdir, steps):
  """[steps, 2] of the events."""
  of_d, of_g = (scalars.read(workdir, name) for name in ('loss/d', 'loss/g'))
  return np.array([(of_d[step], of_g[step]) for step in steps])


def parameters(workdir):
  config = config_lib.from_json((workdir / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = Checkpoints(workdir).restore(train_state.abstract_state(config, device), STEPS)
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.g_params, state.d_params))])


@pytest.fixture(scope='module')
def never_moved(command, tmp_path_factory):
  """The workdir of one process with 8 devices, with checkpoints 10, 20, 30 and 40."""
  workdir = tmp_path_factory.mktemp('runs') / 'eight'
  subprocess.run(
      command(workdir, '--config.train.checkpoint_every=10', '--config.train.keep_checkpoints=9'), cwd=ROOT, check=True,
      env=support.command_environment(8, events='scalars'), timeout=900)
  return workdir


@pytest.mark.usefixtures('digits_classifier')
def test_two_processes_with_four_devices_each_are_one_with_eight(never_moved, command, tmp_path):
  """Started by launch/local.py; measured on the way, which keeps the best checkpoint."""
  flags = ('eval_every=20', 'checkpoint_every=10', 'keep_checkpoints=1')
  evaluation = ('metrics=modes', 'num=64', 'batch_size=64', 'force=True')
  run = tmp_path / 'run'
  result = subprocess.run(
      [sys.executable, 'launch/local.py', '--processes', '2', '--devices', '4', '--',
       *command(run, *(f'--config.train.{flag}' for flag in flags), *(f'--config.eval.{flag}' for flag in evaluation))],
      cwd=ROOT, env=support.command_environment(events='scalars'), capture_output=True, text=True, timeout=900)
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stdout.startswith('[0] 2 processes with 8 cpu device(s), 4 per process.\n')
  outputs = [re.sub(rf'^\[{i}\] ', '', ''.join(re.findall(rf'^\[{i}\].*\n', result.stdout, re.MULTILINE)),
                    flags=re.MULTILINE) for i in range(2)]
  checkpoints = Checkpoints(run)
  distances = {step: float(value) for step, value in re.findall(
      r'step (\d+): n = 64;(?:.*\n)*?  Fréchet distance, not FID +([\d.]+)', outputs[0])}
  assert [*distances] == ['20', '40'] and '20: n = 64' not in outputs[1]
  assert {*map(str, checkpoints.steps())} == {'40', min(distances, key=distances.get)}
  assert sorted(scalars.read(run, 'loss/d')) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(losses(run, range(1, 31)), losses(never_moved, range(1, 31)), rtol=1e-4)
  np.testing.assert_allclose(parameters(run), parameters(never_moved), atol=1e-3)
  # Process 0 alone writes and talks.
  assert len(list(run.glob('events.out.tfevents.*'))) == 1 and 'Traceback' not in result.stderr
  assert (run / 'samples' / 'step_00000040.png').exists()
  assert 'Finished 40 steps' in outputs[0] and 'step ' not in outputs[1]


def test_a_run_moves_to_other_devices_and_is_stopped_and_killed_on_the_way(never_moved, command, start, tmp_path):
  """Of eight devices, of two processes that share the state, and of one device: the losses of a run left alone."""
  workdir = tmp_path / 'run'
  (workdir / 'checkpoints').mkdir(parents=True)
  shutil.copy(never_moved / 'config.json', workdir)
  for step in ('10', '20'):
    shutil.copytree(never_moved / 'checkpoints' / step, workdir / 'checkpoints' / step)
  for file in (workdir / 'checkpoints' / '20' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  in_parts = command(workdir, '--config.train.checkpoint_every=1', '--config.parallel.fsdp=4')

  # A signal to one of two processes: both save the same step and end well.
  group = start(in_parts, 2, 2)
  wait_for(group, 'step 12/')
  group[1][0].send_signal(signal.SIGTERM)
  statuses, outputs = finish(group)
  assert statuses == [0, 0], outputs
  assert '20: its list of arrays cannot be read; using step 10 instead.' in outputs[0]
  assert 'Resumed at step 10' in outputs[0]
  stopped = Checkpoints(workdir).latest_step()
  assert 12 <= stopped < 25 and f'SIGTERM: saved step {stopped} in' in outputs[0]

  # While it compiles: it leaves after the step that it can take.
  group = start(in_parts, 2, 2)
  wait_for(group, 'Compiling')
  group[1][0].send_signal(signal.SIGTERM)
  statuses, outputs = finish(group)
  assert statuses == [0, 0], outputs
  begun, stopped = stopped, Checkpoints(workdir).latest_step()
  assert begun < stopped < begun + 10 and f'SIGTERM: saved step {stopped} in' in outputs[0], outputs

  # One is killed: the other one ends too, with an error.
  group = start(in_parts, 2, 2)
  wait_for(group, f'step {stopped + 3}/')  # one step is saved by then, and perhaps the next one
  group[1][0].kill()
  statuses, outputs = finish(group)
  assert statuses[0] != 0 and statuses[1] == -signal.SIGKILL, outputs
  latest = Checkpoints(workdir).latest_step()
  assert stopped < latest < STEPS

  statuses, outputs = finish(start(command(workdir), 1, 1))
  assert statuses == [0] and f'Resumed at step {latest}' in outputs[0], outputs
  # All but the last ones of the killed process.
  steps = sorted(set(range(11, 31)) & set(scalars.read(workdir, 'loss/d')))
  assert len(steps) > 10
  np.testing.assert_allclose(losses(workdir, steps), losses(never_moved, steps), rtol=1e-4)
  np.testing.assert_allclose(parameters(workdir), parameters(never_moved), atol=1e-3)


def test_two_processes_start_from_another_run_and_save_averages(never_moved, command, start, tmp_path):
  """`train.init_from` and `optim.ema_profiles`: the same averages as on one device."""
  flags = ('train.num_steps=4', 'train.checkpoint_every=2', f'train.init_from={never_moved}', 'optim.ema_profiles=True')
  averages = []
  for processes in (2, 1):
    workdir = tmp_path / f'on_{processes}'
    group = start(command(workdir, *(f'--config.{flag}' for flag in flags)), processes, 1)
    statuses, outputs = finish(group)
    assert statuses == processes * [0], outputs
    assert f'Starts with G and D of {never_moved} at step 40' in outputs[0]
    with np.load(workdir / 'ema_profiles' / '4.npz') as file:
      averages.append({name: file[name] for name in file})
  assert ema_snapshots.saved_steps(tmp_path / 'on_2') == [2, 4] and averages[0].keys() == averages[1].keys()
  for name, array in averages[0].items():
    np.testing.assert_allclose(array, averages[1][name], atol=1e-3)


def test_two_processes_train_and_measure_with_conditions(tmp_path, start):
  """Super-resolution: the same parameters as one process, and the same metrics of the same run."""
  recipe = support.quick_config_dict(condition='lowres:2')
  (tmp_path / 'recipe.py').write_text(support.config_text(recipe))
  flags = [f'--config.train.{flag}={STEPS}' for flag in ('num_steps', 'checkpoint_every')]
  found = []
  for processes in (2, 1):
    workdir = tmp_path / f'on_{processes}'
    group = start([sys.executable, '-m', 'ddgan_jax.main', '--config', str(tmp_path / 'recipe.py'),
                   '--workdir', str(workdir), *flags], processes, 1)
    statuses, outputs = finish(group)
    assert statuses == processes * [0], outputs
    found.append(parameters(workdir))
  np.testing.assert_allclose(*found, atol=1e-3)
  reports = []
  for processes in (2, 1):
    out = tmp_path / f'{processes}.json'
    statuses, outputs = finish(start(
        [sys.executable, '-m', 'ddgan_jax.evaluate', '--workdir', str(tmp_path / 'on_2'), '--out', str(out),
         '--metrics', ','.join(CONDITION_METRICS), '--num', '13', '--samples_per_condition', '3'], processes, 1))
    assert statuses == processes * [0], outputs
    reports.append(json.loads(out.read_text())['metrics'])
  assert reports[0].keys() == reports[1].keys() > {*CONDITION_METRICS}
  for name, entry in reports[0].items():
    np.testing.assert_allclose(entry['value'], reports[1][name]['value'], rtol=2e-3)  # images differ by a grey level


# Each process tries three runs, and would end with status 2 at each.
REFUSED = """
import dataclasses, os, sys
from ddgan_jax import config as config_lib
from ddgan_jax.config import UserError
from ddgan_jax.parallel import processes
from ddgan_jax.training import loop
from tests.support import quick_config_dict

index, folder = int(sys.argv[3]), sys.argv[1]
processes.initialize(sys.argv[2], 2, index)
config = config_lib.from_config_dict(quick_config_dict())
for seed, workdir in ((0, 'locked'), (0, f'host{index}/run'), (index, 'run')):
  try:
    loop.train_and_evaluate(dataclasses.replace(config, seed=seed), os.path.join(folder, workdir))
  except UserError as error:
    print(f'refused: {error}', flush=True)
"""


def test_a_run_is_refused_on_all_processes(start, tmp_path):
  """One that another process uses; one whose folder is not shared, as on hosts with local disks; and two configs."""
  for name in ('locked', 'host0', 'host1'):
    (tmp_path / name).mkdir()
  with workdir_lib.locked(str(tmp_path / 'locked')):
    statuses, outputs = finish(start([sys.executable, '-c', REFUSED, str(tmp_path)], 2, 1, together='{0} {2}'))
  assert statuses == [0, 0], outputs
  for output in outputs:
    refused = re.findall('^refused: .*', output, re.MULTILINE)
    assert len(refused) == 3, output
    for said, expected in zip(refused, ('another run is using it (process ',
                                        'process 1 does not see the files that process 0 writes there',
                                        'the config differs between processes')):
      assert expected in said


# Measures random images with small random networks, whose published weights are too large for a test.
MEASURED = """
import json, sys
import jax, numpy as np
from ddgan_jax.metrics import evaluator, image_sets
from ddgan_jax.metrics.features import dinov2, inception, vgg
from ddgan_jax.parallel import processes, sharding

if len(sys.argv) > 2:
  processes.initialize(sys.argv[2], 2, int(sys.argv[3]))
rng = np.random.default_rng(0)
kernels = {module: rng.standard_normal((192, 12), np.float32) for module in (dinov2, inception, vgg)}
for module, kernel in kernels.items():
  module.load = lambda path, allow_any, *model, kernel=kernel: {'kernel': kernel}
  module.features = lambda params, x: x.reshape(len(x), -1) / 255.0 @ params['kernel']
inception.clean_features = lambda params, x: x.reshape(len(x), -1) / 200.0 @ params['kernel']
read = inception.features
inception.features = lambda params, x: (read(params, x), read(params, x))
pictures = lambda count: rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
sizes = {'train': 97, 'ours': 50, 'held out': 30}
sets = [image_sets.array_images(pictures(count), name) for name, count in sizes.items()]
metrics = ('fid', 'fid_clean', 'kid', 'mind', 'pr', 'dc', 'fd_dinov2', 'mind_dinov2', 'pr_dinov2', 'dc_dinov2',
           'authenticity_dinov2', 'authenticity_vgg16')
measure = evaluator.Evaluator(
    metrics, sets[0], sharding.make_mesh(), 1000, 16, log=lambda text: None, held_out=sets[2], num_closest=3)
found = measure.evaluate(sets[1])['metrics']
values = {name: [entry['value'], entry.get('of_held_out')] for name, entry in found.items()}
out = f'{sys.argv[1]}/{jax.process_count()}_{jax.process_index()}'
json.dump([values, measure.closest[0].tolist()], open(out, 'w'))
"""


def test_two_processes_measure_the_same_as_one(start, tmp_path):
  """Every metric with a feature network; two processes with four devices each."""
  for processes, devices in ((1, 1), (2, 4)):
    statuses, outputs = finish(start(
        [sys.executable, '-c', MEASURED, str(tmp_path)], processes, devices, together='{0} {2}'))
    assert statuses == processes * [0], outputs
  one, *two = (json.loads((tmp_path / name).read_text()) for name in ('1_0', '2_0', '2_1'))
  for values, closest in two:
    assert values.keys() == one[0].keys() and len(values) == 16 and closest == one[1]
    for name, (value, of_held_out) in values.items():
      assert value == pytest.approx(one[0][name][0], rel=1e-6), name
      assert of_held_out == one[0][name][1]
