"""The commands as a user types them: train, stop, kill, resume, sample; and every mistake gets one sentence."""

import dataclasses
import math
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import main as train
from ddgan_jax import sample
from ddgan_jax.cli import image_output
from tests import support
from tests.support import ROOT, programs, quick_config_dict
from tests.support.commands import run_command

CADENCE = {'num_steps': 120, 'sample_every': 60, 'checkpoint_every': 30}


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('configs') / 'tiny.py'
  fields = quick_config_dict()
  fields['train'].update(CADENCE)
  path.write_text(support.config_text(fields))
  return path


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def command(config_file, data_dir, monkeypatch):
  """Makes the arguments of a training run; runs in this process share their programs."""
  programs.share(monkeypatch)

  def make(workdir, *flags, config=config_file):
    return ['--config', str(config), '--workdir', str(workdir), f'--config.data.data_dir={data_dir}', *flags]

  return make


# Only `finished` writes events.
ENVIRONMENT = support.command_environment()


def start(arguments, env=ENVIRONMENT):
  """Trains in a separate process on one device, for bit-for-bit comparisons."""
  return subprocess.run(
      [sys.executable, '-m', 'ddgan_jax.main', *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
      timeout=600)


def interrupt(arguments, at, number, env=ENVIRONMENT):
  """Starts a run and sends it a signal when a line of its output contains `at`; returns (status, output).

  The pipe is so small that the run blocks after about 50 unread lines, however slow this process is.
  """
  process = subprocess.Popen(
      [sys.executable, '-m', 'ddgan_jax.main', *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, bufsize=0, pipesize=4096)
  lines = []
  for line in iter(process.stdout.readline, b''):
    lines.append(line.decode())
    if at in lines[-1]:
      process.send_signal(number)
      break
  else:
    pytest.fail(f'{at!r} never came:\n{"".join(lines)}')
  lines.append(process.stdout.read().decode())
  return process.wait(), ''.join(lines)


def restored_state(workdir, step):
  from ddgan_jax import config as config_lib
  from ddgan_jax import train_state
  from ddgan_jax.runs.checkpoints import Checkpoints

  config = config_lib.from_json((pathlib.Path(workdir) / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Checkpoints(workdir).restore(train_state.abstract_state(config, device), step)


@pytest.fixture(scope='module')
def finished(config_file, data_dir, tmp_path_factory):
  """An uninterrupted run of 120 steps, and its output."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  result = start(['--config', str(config_file), '--workdir', str(workdir), f'--config.data.data_dir={data_dir}'],
                 env=support.command_environment(events='tensorflow'))
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_a_run_writes_everything_to_its_workdir(finished):
  workdir, result = finished
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['120', '90']
  assert sorted(path.name for path in (workdir / 'samples').iterdir()) == ['step_00000060.png', 'step_00000120.png']
  assert Image.open(workdir / 'samples' / 'step_00000120.png').size == (102, 102)
  assert 'dense_0/kernel' in (workdir / 'parameters.txt').read_text()
  assert ddgan_jax.load(workdir).config.data.batch_size == 32
  lines = result.stdout.splitlines()
  assert any(line.startswith('Compiling') for line in lines)
  assert sum(line.startswith('step ') for line in lines) == 120
  assert sum(line.startswith('Compiled the training step in') and 'MiB per device' in line for line in lines) == 1
  assert lines[-1] == (f'Finished 120 steps in {workdir}; its last sample grid is '
                       f'{workdir / "samples" / "step_00000120.png"}.')
  assert 'Traceback' not in result.stderr and 'WARNING' not in result.stderr


def test_tensorboard_events_read_back(finished):
  """Scalars at every logged step, R1 only where it was applied, and sample grids."""
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  workdir, _ = finished
  events = EventAccumulator(str(workdir), size_guidance={'tensors': 0}).Reload()
  tags = events.Tags()['tensors']

  def steps(tag):
    return [event.step for event in events.Tensors(tag)]

  def values(tag):
    return [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]

  for tag in ('loss/d', 'loss/d_real', 'loss/d_fake', 'loss/g', 'grad_norm/d', 'grad_norm/g', 'logits/real',
              'logits/fake', 'lr/d', 'lr/g'):
    assert steps(tag) == list(range(1, 121)), tag
    assert np.isfinite(values(tag)).all(), tag
  assert steps('loss/r1') == list(range(1, 121, 4))
  waits = 'speed/data_wait'
  assert steps('speed/images_per_second') == steps(waits) and set(steps(waits)) <= set(range(2, 121))
  assert all(0 <= fraction <= 1 for fraction in values(waits))
  assert steps('speed/compile_seconds') == steps('memory/step_mib') == [1] and values('memory/step_mib')[0] > 0.02
  rates = values('lr/g')
  assert rates[0] == pytest.approx(1.6e-4) and all(b < a for a, b in zip(rates, rates[1:], strict=False))
  assert steps('samples') == [60, 120]
  width, height, png = events.Tensors('samples')[-1].tensor_proto.string_val[:3]
  assert (int(width), int(height)) == (102, 102) and png.startswith(b'\x89PNG')
  assert all('/' in tag or tag == 'samples' for tag in tags)


def test_repeating_the_command_reports_a_finished_run(finished, command):
  workdir, _ = finished
  result = run_command(train.main, *command(workdir))
  assert result.status == 0
  assert result.out.startswith(f'{workdir} has finished its 120 steps; its last sample grid is')
  assert result.out.count('\n') == 1


def test_a_stopped_and_killed_run_resumes_with_the_same_bits(finished, command, tmp_path):
  """SIGTERM, which saves, then SIGKILL between two checkpoints; test_faults.py has more."""
  status, output = interrupt(command(tmp_path / 'run'), 'step 4/', signal.SIGTERM)
  stopped = checkpoint_step(tmp_path / 'run')
  assert status == 0 and 4 <= stopped < 120 and f'SIGTERM: saved step {stopped} in' in output, output
  status, output = interrupt(command(tmp_path / 'run'), f'step {stopped + 3}/', signal.SIGKILL)
  assert status == -signal.SIGKILL and f'Resumed at step {stopped}' in output and 'Finished' not in output
  result = start(command(tmp_path / 'run'))
  assert result.returncode == 0, result.stderr
  assert 'Finished 120 steps' in result.stdout
  expected, found = restored_state(finished[0], 120), restored_state(tmp_path / 'run', 120)
  for name in ('g_params', 'd_params', 'ema_params', 'g_opt_state', 'd_opt_state', 'step'):
    jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))
  assert (tmp_path / 'run' / 'samples' / 'step_00000120.png').read_bytes() == (
      finished[0] / 'samples' / 'step_00000120.png').read_bytes()


def checkpoint_step(workdir):
  from ddgan_jax.runs.checkpoints import Checkpoints

  return Checkpoints(workdir).latest_step()


def test_a_signal_during_compilation_exits_at_once(command, tmp_path):
  # Another learning rate, so that the program is not in the cache.
  arguments = command(tmp_path / 'run', f'--config.optim.lr_g={1e-4 + time.time() % 1e-5}')
  status, output = interrupt(arguments, 'Compiling', signal.SIGINT)
  assert status == 0 and 'First step done' not in output, output
  assert 'SIGINT before the first step: there is nothing to save.' in output


def test_losses_on_eight_devices_are_those_of_one(finished, command, tmp_path):
  """The command on eight simulated devices, stopped by Ctrl-C after 10 steps, against the losses of one device."""
  status, output = interrupt(command(tmp_path / 'run'), 'step 10/', signal.SIGINT, support.command_environment(8))
  assert status == 0 and 'on 8 cpu device(s)' in output and 'SIGINT: saved step ' in output, output

  def losses(text):
    return [line.split()[3:6:2] for line in text.splitlines() if line.startswith('step ')]

  np.testing.assert_allclose(
      np.array(losses(output)[:10], float), np.array(losses(finished[1].stdout)[:10], float), atol=2e-3)


def draw(workdir, *flags):
  return run_command(sample.main, '--workdir', workdir, *flags)


def test_samples_are_saved_as_grid_array_or_folder(finished, tmp_path):
  workdir, _ = finished
  flags = ['--workdir', str(workdir), '--num', '6', '--seed', '3', '--out', str(tmp_path / 'process.npz')]
  subprocess.run([sys.executable, '-m', 'ddgan_jax.sample', *flags], cwd=ROOT, env=ENVIRONMENT, check=True)
  for out in ('some/array.npz', 'folder'):
    result = draw(workdir, '--num', '6', '--seed', '3', '--out', tmp_path / out)
    assert result.status == 0, result.err
    assert result.out == f'6 images from step 120 of {workdir}, seed 3: {tmp_path / out}\n'
  images = np.load(tmp_path / 'some' / 'array.npz')['images']
  assert images.shape == (6, 8, 8, 1) and images.dtype == np.uint8
  np.testing.assert_array_equal(np.load(tmp_path / 'process.npz')['images'], images)
  files = sorted((tmp_path / 'folder').iterdir())
  assert [file.name for file in files] == [f'{i:06d}.png' for i in range(6)]
  np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], images[..., 0])
  image_output.save(str(tmp_path / 'grid.png'), images)
  assert np.asarray(Image.open(tmp_path / 'grid.png')).shape == (102, 152)
  again = draw(workdir, '--num', '6', '--out', str(tmp_path / 'folder'))
  assert again.status == 2 and 'exists and is not an empty folder' in again.err


def test_a_trajectory_is_a_strip_or_an_animation(finished, tmp_path):
  """It ends in the images that `sample` draws; too many images and other formats are refused."""
  workdir, _ = finished
  result = draw(workdir, '--trajectory', '--seed', '3', '--out', tmp_path / 'strip.png')
  assert result == (0, f'4 images from step 120 of {workdir}, seed 3: {tmp_path / "strip.png"}\n', '')
  four = Image.open(tmp_path / 'strip.png').size
  assert draw(workdir, '--trajectory', '--num', '5', '--out', tmp_path / 'strip.png').status == 0
  five = Image.open(tmp_path / 'strip.png').size
  assert four[0] == five[0] and five[1] > four[1] + 80  # one more row
  assert draw(workdir, '--trajectory', '--num', '16', '--out', tmp_path / 'new' / 'strip.gif').status == 0
  with Image.open(tmp_path / 'new' / 'strip.gif') as animation:
    assert animation.n_frames == 3  # x_2, x_1, x_0
    durations = [animation.seek(i) or animation.info['duration'] for i in range(3)]
  assert durations[2] > 2 * durations[0] == 2 * durations[1]

  loaded = ddgan_jax.load(workdir)
  steps = image_output.denoise(loaded, 3, seed=3)
  assert steps.x_t.dtype == steps.predictions.dtype == np.uint8
  images = image_output.generate(loaded, 3, seed=3).astype(int)
  assert np.abs(steps.x_t[-1] - images).max() <= 1 and np.ptp(images) > 50  # rounding
  for flags, message in (
      (['--num', '17'], '--num is 17; use at most 16 images with --trajectory'),
      (['--out', 'strip.npz'],
       "--out is 'strip.npz'; use a .png (a strip) or a .gif (an animation) with --trajectory")):
    assert draw(workdir, '--trajectory', *flags) == (2, '', f'Error: {message}\n')
  assert draw(workdir, '--out', 'x.gif').status == 2


def test_an_image_depends_only_on_seed_and_index(finished):
  loaded = ddgan_jax.load(finished[0])
  ten = image_output.generate(loaded, 10, seed=5, batch_size=10).astype(int)
  assert np.abs(image_output.generate(loaded, 7, seed=5, batch_size=3).astype(int) - ten[:7]).max() <= 1  # rounding
  assert np.abs(image_output.generate(loaded, 10, seed=6, batch_size=10).astype(int) - ten).max() > 10


MISTAKES = {
    'unknown field': (['--config.optim.lr=1'],
                      'Error: --config.optim.lr: no such field; did you mean --config.optim.lr_'),
    'unknown section': (['--config.optimizer.lr_g=1'], 'did you mean --config.optim.lr_g?'),
    'wrong type': (['--config.train.num_steps=many'], 'Error: flag --config.train.num_steps=many: invalid literal'),
    'T below 1': (['--config.diffusion.num_timesteps=0'],
                  'Error: diffusion.num_timesteps is 0; use at least 1'),
    'size': (['--config.data.image_size=12', '--config.discriminator.kind=small'],
             "Error: data.image_size is 12; use a multiple of 8, because discriminator.kind='small'"),
    'attention': (['--config.generator.attn_resolutions=16,', '--config.generator.kind=ncsnpp'],
                  'Error: generator.attn_resolutions contains 16; use'),
    'rows': (['--config.data.batch_size=30'], 'Error: data.batch_size is 30; use a multiple of 4'),
    'stray word': (['digits'], "Error: 'digits' is not a flag; flags start with --"),
}


@pytest.mark.parametrize('flags, message', MISTAKES.values(), ids=MISTAKES.keys())
def test_errors_are_one_sentence(command, tmp_path, flags, message):
  result = run_command(train.main, *command(tmp_path / 'run', *flags))
  assert result.status == 2 and result.err.startswith('Error: ') and message in result.err, result.err
  assert result.err.count('\n') == 1 and not result.out and not (tmp_path / 'run').exists()


def test_a_missing_config_file_is_reported(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run', config=tmp_path / 'nowhere.py'))
  assert result.status == 2
  assert result.err.startswith(f"Error: --config: no such file '{tmp_path / 'nowhere.py'}'; the recipes are cel")
  assert result.err.count('\n') == 1


def test_devices_must_divide_the_batch(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run'), devices=3)
  assert result.status == 2
  assert 'Error: data.batch_size is 32; use a multiple of 12: 3 devices, times' in result.err


def read_files(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_workdir_with_a_different_config_is_refused(finished, command):
  before = read_files(finished[0])
  result = run_command(train.main, *command(
      finished[0], '--config.optim.lr_g=3e-4', '--config.generator.nz=5', '--config.train.num_steps=999'))
  assert result.status == 2
  assert 'optim.lr_g was 0.00016, is 0.0003' in result.err and 'generator.nz was 4, is 5' in result.err
  assert 'num_steps' not in result.err and result.err.count('\n') == 1
  assert read_files(finished[0]) == before


def test_foreign_checkpoints_are_left_alone(command, tmp_path):
  (tmp_path / 'checkpoints' / '100').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '100' / 'model.pt').write_text('somebody else')
  before = read_files(tmp_path)
  result = run_command(train.main, *command(tmp_path))
  assert result.status == 2 and 'has no config.json, so they are not from a ddgan_jax run' in result.err
  assert read_files(tmp_path) == before


def test_a_corrupt_checkpoint_is_set_aside(finished, command, tmp_path):
  """The run resumes from the newest undamaged checkpoint."""
  import shutil

  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  for file in (workdir / 'checkpoints' / '120' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  shutil.copytree(workdir / 'checkpoints' / '90', workdir / 'checkpoints' / '91')  # readable, but not step 91
  result = run_command(train.main, *command(workdir, '--config.train.num_steps=121'))
  assert result.status == 0, result.err
  assert '120: its list of arrays cannot be read; using step 91 instead.' in result.out
  assert '91: contains step 90, so it was renamed or copied; using step 90 instead.' in result.out
  assert 'Resumed at step 90' in result.out and 'Finished 121 steps' in result.out
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == [
      '120', '120.damaged', '121', '91.damaged']


def test_data_folders_of_the_same_name_do_not_share_a_run(config_file, tmp_path, monkeypatch):
  """cats/images and dogs/images have the same default workdir; the second is refused unless --workdir is set."""
  programs.share(monkeypatch)
  rng = np.random.default_rng(0)
  for animal in ('cats', 'dogs'):
    (tmp_path / animal / 'images').mkdir(parents=True)
    for i in range(4):
      Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / animal / 'images' / f'{i}.png')

  def train_on(animal, *flags, num_steps=2):
    return run_command(
        train.main, '--config', config_file, '--config.data.name=folder', f'--config.data.path={animal}/images',
        f'--config.train.num_steps={num_steps}', *flags, cwd=tmp_path)

  first = train_on('cats')
  assert first.status == 0 and 'Finished 2 steps in runs/tiny_images' in first.out, first.err
  before = read_files(tmp_path / 'runs')
  for num_steps in (2, 4):  # a finished run, or one to continue
    refused = train_on('dogs', num_steps=num_steps)
    assert refused.status == 2 and read_files(tmp_path / 'runs') == before
    assert re.fullmatch(
        r'Error: runs/tiny_images: this run started with other data \(4 images with checksum \w{16}\) than folder at '
        r'dogs/images \(4 images with checksum \w{16}\); set --workdir to another folder to start a new run, or set '
        r'--workdir=runs/tiny_images to continue this one with the new data\n', refused.err), refused.err
  (tmp_path / 'cats').rename(tmp_path / 'felines')
  assert 'runs/tiny_images has finished its 2 steps' in train_on('felines').out  # the same data elsewhere
  continued = train_on('dogs', '--workdir=runs/tiny_images', num_steps=4)
  assert continued.status == 0 and 'This run started with other data' in continued.out


def test_an_unwritable_workdir_is_refused(command, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  result = run_command(train.main, *command(tmp_path / 'file' / 'run'))
  assert result.status == 2 and 'cannot be written to' in result.err and 'Compiling' not in result.out


def test_too_little_disk_space_is_reported(tiny_config, tmp_path, monkeypatch):
  import collections

  from ddgan_jax import train_state
  from ddgan_jax.parallel import sharding
  from ddgan_jax.runs import workdir
  from ddgan_jax.runs.checkpoints import Checkpoints

  here, checkpoints = sharding.replicated(sharding.make_mesh()), Checkpoints(tmp_path)
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(workdir.shutil, 'disk_usage', lambda path: usage(10**9, 10**9, 10_000))
  state = train_state.abstract_state(tiny_config, here)
  with pytest.raises(workdir.WorkdirError, match='has 0 MiB of free space, but checkpoints of .* MiB each need'):
    workdir.check_space(str(tmp_path), tiny_config, checkpoints, state)
  # Enough for the checkpoints of a short run, but not for the averages of a thousand steps.
  config = dataclasses.replace(
      tiny_config, optim=dataclasses.replace(tiny_config.optim, ema_profiles=True),
      train=dataclasses.replace(tiny_config.train, num_steps=1000, checkpoint_every=1, keep_checkpoints=1))
  state = train_state.abstract_state(config, here)
  size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
  monkeypatch.setattr(workdir.shutil, 'disk_usage', lambda path: usage(10**9, 10**9, 3 * size))
  with pytest.raises(workdir.WorkdirError, match='and the averages of optim.ema_profiles at 1,000 steps need'):
    workdir.check_space(str(tmp_path), config, checkpoints, state)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
  """Within seconds, before anything compiles; an unreachable proxy stands for a missing network."""
  for name in ('HTTPS_PROXY', 'HTTP_PROXY'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')
  result = run_command(
      train.main, '--config', 'cifar10', '--workdir', tmp_path / 'run', f'--config.data.data_dir={tmp_path / "data"}')
  assert result.status == 2
  assert 'cifar-10-binary.tar.gz' in result.err and 'Compiling' not in result.out


def test_a_truncated_config_json_is_reported(finished, command, tmp_path):
  import shutil

  shutil.copytree(finished[0], tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  file.write_text(file.read_text()[:50])
  trained = run_command(train.main, *command(tmp_path / 'run'))
  for result in (trained, draw(tmp_path / 'run', '--out', tmp_path / 'x.png')):
    assert result.status == 2 and 'config.json is not a config of this version of ddgan_jax' in result.err
    assert result.err.count('\n') == 1


def test_non_finite_losses_stop_the_run(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run', '--config.optim.lr_g=1e30', '--config.optim.lr_d=1e30'))
  assert result.status == 2
  assert 'not finite at step' in result.err and 'there is no checkpoint yet' in result.err
  assert not list((tmp_path / 'run').glob('checkpoints/*'))
