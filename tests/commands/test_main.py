"""The commands as a user types them: train, stop, kill, resume, sample; and every mistake gets one sentence."""

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
from tests.support import ROOT, quick_config_dict
from tests.support.commands import run_command

QUICK_CONFIG = support.config_text(quick_config_dict())


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('configs') / 'tiny.py'
  path.write_text(QUICK_CONFIG)
  return path


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def command(config_file, data_dir):
  """The arguments of a training run in a workdir."""

  def make(workdir, *flags, config=config_file):
    return ['--config', str(config), '--workdir', str(workdir), f'--config.data.data_dir={data_dir}', *flags]

  return make


# `finished` alone is asked for its events.
ENVIRONMENT = support.command_environment(tensorflow=False)


def start(arguments, env=ENVIRONMENT):
  """A process of its own, on one device, for what is compared bit for bit."""
  return subprocess.run(
      [sys.executable, '-m', 'ddgan_jax.main', *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
      timeout=600)


def interrupt(arguments, at, number, env=ENVIRONMENT):
  """Starts a run, sends it a signal when a line of its output contains `at`, returns (status, output).

  Its pipe is so small that it waits after some 100 lines that nobody has read, however slow this process may be.
  """
  process = subprocess.Popen(
      [sys.executable, '-m', 'ddgan_jax.main', *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, pipesize=4096)
  lines = []
  for line in process.stdout:
    lines.append(line)
    if at in line:
      process.send_signal(number)
      break
  else:
    pytest.fail(f'{at!r} never came:\n{"".join(lines)}')
  lines.append(process.stdout.read())
  return process.wait(), ''.join(lines)


def restored_state(workdir, step):
  from ddgan_jax import config as config_lib
  from ddgan_jax import train_state
  from ddgan_jax.runs.checkpoints import Checkpoints

  config = config_lib.from_json((pathlib.Path(workdir) / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Checkpoints(workdir).restore(train_state.abstract(config, device), step)


@pytest.fixture(scope='module')
def finished(config_file, data_dir, tmp_path_factory):
  """A run of 200 steps without interruption, and what it printed."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  result = start(['--config', str(config_file), '--workdir', str(workdir), f'--config.data.data_dir={data_dir}'],
                 env=support.command_environment())
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_a_run_leaves_everything_in_its_workdir(finished):
  workdir, result = finished
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['150', '200']
  assert sorted(path.name for path in (workdir / 'samples').iterdir()) == ['step_00000100.png', 'step_00000200.png']
  assert Image.open(workdir / 'samples' / 'step_00000200.png').size == (102, 102)
  assert 'dense_0/kernel' in (workdir / 'parameters.txt').read_text()
  assert ddgan_jax.load(workdir).config.data.batch_size == 32
  lines = result.stdout.splitlines()
  assert any(line.startswith('Compiling') for line in lines)
  assert sum(line.startswith('step ') for line in lines) == 200
  assert sum(line.startswith('The step was compiled in') and 'MiB on each device' in line for line in lines) == 1
  assert lines[-1] == (f'Finished 200 steps in {workdir}; its last sample grid is '
                       f'{workdir / "samples" / "step_00000200.png"}.')
  assert 'Traceback' not in result.stderr and 'WARNING' not in result.stderr


def test_tensorboard_events_read_back(finished):
  """Scalars at every logged step, R1 only where it was applied, pictures and hyper-parameters."""
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
    assert steps(tag) == list(range(1, 201)), tag
    assert np.isfinite(values(tag)).all(), tag
  assert steps('loss/r1') == list(range(1, 201, 4))
  waits = 'speed/data_wait'
  assert steps('speed/images_per_second') == steps(waits) and set(steps(waits)) <= set(range(2, 201))
  assert all(0 <= fraction <= 1 for fraction in values(waits))
  assert steps('speed/compile_seconds') == steps('memory/step_mib') == [1] and values('memory/step_mib')[0] > 0.02
  rates = values('lr/g')
  assert rates[0] == pytest.approx(1.6e-4) and all(b < a for a, b in zip(rates, rates[1:], strict=False))
  assert steps('samples') == [100, 200]
  width, height, png = events.Tensors('samples')[-1].tensor_proto.string_val[:3]
  assert (int(width), int(height)) == (102, 102) and png.startswith(b'\x89PNG')
  assert all('/' in tag or tag == 'samples' for tag in tags)


def test_the_same_command_says_that_it_has_finished(finished, command):
  workdir, _ = finished
  result = run_command(train.main, *command(workdir))
  assert result.status == 0
  assert result.out.startswith(f'{workdir} has finished its 200 steps; its last sample grid is')
  assert result.out.count('\n') == 1


def test_killed_and_resumed_is_bit_identical(finished, command, tmp_path):
  """SIGKILL between two checkpoints, then the same command; test_faults.py has more of them."""
  status, output = interrupt(command(tmp_path / 'run'), 'step 70/', signal.SIGKILL)
  assert status == -signal.SIGKILL and 'Finished' not in output
  result = start(command(tmp_path / 'run'))
  assert result.returncode == 0, result.stderr
  assert 'Finished 200 steps' in result.stdout
  expected, found = restored_state(finished[0], 200), restored_state(tmp_path / 'run', 200)
  for name in ('g_params', 'd_params', 'ema_params', 'g_opt_state', 'd_opt_state', 'step'):
    jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))
  assert (tmp_path / 'run' / 'samples' / 'step_00000200.png').read_bytes() == (
      finished[0] / 'samples' / 'step_00000200.png').read_bytes()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_saves_and_resumes(finished, command, tmp_path, number):
  status, output = interrupt(command(tmp_path / 'run'), 'step 20/', number)
  assert status == 0, output
  stopped = checkpoint_step(tmp_path / 'run')
  assert f'{signal.Signals(number).name}: saved step {stopped} in' in output
  assert 20 <= stopped < 200
  if number == signal.SIGINT:
    return
  result = start(command(tmp_path / 'run'))
  assert f'Resumed at step {stopped}' in result.stdout
  jax.tree.map(np.testing.assert_array_equal, restored_state(tmp_path / 'run', 200).ema_params,
               restored_state(finished[0], 200).ema_params)


def checkpoint_step(workdir):
  from ddgan_jax.runs.checkpoints import Checkpoints

  return Checkpoints(workdir).latest_step()


def test_told_to_stop_while_compiling_leaves_at_once(command, tmp_path):
  # Another learning rate, so that the program is not in the cache.
  arguments = command(tmp_path / 'run', f'--config.optim.lr_g={1e-4 + time.time() % 1e-5}')
  status, output = interrupt(arguments, 'Compiling', signal.SIGTERM)
  assert status == 0 and 'First step done' not in output, output
  assert 'SIGTERM before the first step: nothing to save.' in output


def test_on_eight_devices(finished, command, tmp_path):
  """The whole command on eight simulated devices, stopped after 20 steps: the same losses."""
  env = support.command_environment(8, tensorflow=False)
  status, output = interrupt(command(tmp_path / 'run'), 'step 20/', signal.SIGTERM, env)
  assert status == 0 and 'on 8 cpu device(s)' in output, output

  def losses(text):
    return [line.split()[3:6:2] for line in text.splitlines() if line.startswith('step ')]

  np.testing.assert_allclose(
      np.array(losses(output)[:20], float), np.array(losses(finished[1].stdout)[:20], float), atol=2e-3)


def draw(workdir, *flags):
  return run_command(sample.main, '--workdir', workdir, *flags)


def test_sample_to_grid_array_and_folder(finished, tmp_path):
  workdir, _ = finished
  flags = ['--workdir', str(workdir), '--num', '6', '--seed', '3', '--out', str(tmp_path / 'process.npz')]
  subprocess.run([sys.executable, '-m', 'ddgan_jax.sample', *flags], cwd=ROOT, env=ENVIRONMENT, check=True)
  for out in ('some/array.npz', 'folder'):
    result = draw(workdir, '--num', '6', '--seed', '3', '--out', tmp_path / out)
    assert result.status == 0, result.err
    assert result.out == f'6 images of step 200 of {workdir}, seed 3: {tmp_path / out}\n'
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
  """It ends in the images that `sample` draws; what it cannot show is refused."""
  workdir, _ = finished
  result = draw(workdir, '--trajectory', '--seed', '3', '--out', tmp_path / 'strip.png')
  assert result == (0, f'4 images of step 200 of {workdir}, seed 3: {tmp_path / "strip.png"}\n', '')
  four = Image.open(tmp_path / 'strip.png').size
  assert draw(workdir, '--trajectory', '--num', '5', '--out', tmp_path / 'strip.png').status == 0
  five = Image.open(tmp_path / 'strip.png').size
  assert four[0] == five[0] and five[1] > four[1] + 80  # a row more
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
      (['--num', '17'], '--num: found 17, --trajectory shows at most 16 images'),
      (['--out', 'strip.npz'], "--out: found 'strip.npz', --trajectory writes a strip (.png) or an animation (.gif)")):
    assert draw(workdir, '--trajectory', *flags) == (2, '', f'Error: {message}\n')
  assert draw(workdir, '--out', 'x.gif').status == 2


def test_image_depends_on_seed_and_index_alone(finished):
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
                  'Error: diffusion.num_timesteps: found 0, must be at least 1'),
    'size': (['--config.data.image_size=12', '--config.discriminator.kind=small'],
             "Error: data.image_size: found 12, but discriminator.kind='small'"),
    'attention': (['--config.generator.attn_resolutions=16,', '--config.generator.kind=ncsnpp'],
                  'Error: generator.attn_resolutions: found 16, which'),
    'rows': (['--config.data.batch_size=30'], 'Error: data.batch_size: found 30, must be a multiple of 4'),
    'stray word': (['digits'], "Error: 'digits' is not understood: flags begin with --"),
}


@pytest.mark.parametrize('flags, message', MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_sentence(command, tmp_path, flags, message):
  result = run_command(train.main, *command(tmp_path / 'run', *flags))
  assert result.status == 2 and result.err.startswith('Error: ') and message in result.err, result.err
  assert result.err.count('\n') == 1 and not result.out and not (tmp_path / 'run').exists()


def test_a_config_file_that_is_not_there(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run', config=tmp_path / 'nowhere.py'))
  assert result.status == 2
  assert result.err.startswith(f"Error: --config: no such file '{tmp_path / 'nowhere.py'}'; the recipes are cel")
  assert result.err.count('\n') == 1


def test_devices_that_do_not_divide_the_batch(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run'), devices=3)
  assert result.status == 2
  assert 'Error: data.batch_size: found 32, must be a multiple of 12: 3 devices, times' in result.err


def files_of(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_workdir_of_another_config_names_the_fields(finished, command):
  before = files_of(finished[0])
  result = run_command(train.main, *command(
      finished[0], '--config.optim.lr_g=3e-4', '--config.generator.nz=5', '--config.train.num_steps=999'))
  assert result.status == 2
  assert 'optim.lr_g was 0.00016, is 0.0003' in result.err and 'generator.nz was 4, is 5' in result.err
  assert 'num_steps' not in result.err and result.err.count('\n') == 1
  assert files_of(finished[0]) == before


def test_foreign_checkpoints_are_left_alone(command, tmp_path):
  (tmp_path / 'checkpoints' / '100').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '100' / 'model.pt').write_text('somebody else')
  before = files_of(tmp_path)
  result = run_command(train.main, *command(tmp_path))
  assert result.status == 2 and 'has no config.json, so they are not of a run of ddgan_jax' in result.err
  assert files_of(tmp_path) == before


def test_a_corrupt_checkpoint_is_set_aside(finished, command, tmp_path):
  """The run goes on from the one before, to the very state that it would have had."""
  import shutil

  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  for file in (workdir / 'checkpoints' / '200' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  shutil.copytree(workdir / 'checkpoints' / '150', workdir / 'checkpoints' / '151')  # readable, but not step 151
  result = run_command(train.main, *command(workdir, '--config.train.num_steps=201'))
  assert result.status == 0, result.err
  assert '200: its list of arrays cannot be read; going back to step 151.' in result.out
  assert '151: holds step 150, so it was renamed or copied; going back to step 150.' in result.out
  assert 'Resumed at step 150' in result.out and 'Finished 201 steps' in result.out
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == [
      '151.damaged', '200', '200.damaged', '201']


def test_folders_of_one_name_do_not_share_a_run(config_file, tmp_path):
  """cats/images and dogs/images have the same default workdir: the second is refused, unless it is named."""
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
  before = files_of(tmp_path / 'runs')
  for num_steps in (2, 4):  # finished, or to be continued
    refused = train_on('dogs', num_steps=num_steps)
    assert refused.status == 2 and files_of(tmp_path / 'runs') == before
    assert re.fullmatch(
        r'Error: runs/tiny_images: holds a run on other data \(4 images with checksum \w{16}\) than folder at '
        r'dogs/images \(4 images with checksum \w{16}\); set --workdir to another folder to start a new run, or set '
        r'--workdir=runs/tiny_images to continue this one with the other data\n', refused.err), refused.err
  (tmp_path / 'cats').rename(tmp_path / 'felines')
  assert 'runs/tiny_images has finished its 2 steps' in train_on('felines').out  # the same data elsewhere
  continued = train_on('dogs', '--workdir=runs/tiny_images', num_steps=4)
  assert continued.status == 0 and 'The data are not those that this run began with' in continued.out


def test_a_workdir_that_cannot_be_written(command, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  result = run_command(train.main, *command(tmp_path / 'file' / 'run'))
  assert result.status == 2 and 'cannot be written to' in result.err and 'Compiling' not in result.out


def test_no_space_left(tiny_config, tmp_path, monkeypatch):
  import collections

  from ddgan_jax import train_state
  from ddgan_jax.parallel import sharding
  from ddgan_jax.runs import workdir
  from ddgan_jax.runs.checkpoints import Checkpoints

  usage = collections.namedtuple('usage', 'total used free')(10**9, 10**9, 10_000)
  monkeypatch.setattr(workdir.shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(workdir.WorkdirError, match='has 0 MiB of free space, but checkpoints of .* MiB each need'):
    workdir.check_space(
        str(tmp_path), tiny_config, Checkpoints(tmp_path),
        train_state.abstract(tiny_config, sharding.replicated(sharding.make_mesh())))


def test_data_that_cannot_be_downloaded(tmp_path, monkeypatch):
  """Within seconds, before anything compiles, with what to do instead; the proxy makes any network unreachable."""
  for name in ('HTTPS_PROXY', 'HTTP_PROXY'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')
  result = run_command(
      train.main, '--config', 'cifar10', '--workdir', tmp_path / 'run', f'--config.data.data_dir={tmp_path / "data"}')
  assert result.status == 2
  assert 'cifar-10-binary.tar.gz' in result.err and 'Compiling' not in result.out


def test_a_truncated_config_json_is_named(finished, command, tmp_path):
  import shutil

  shutil.copytree(finished[0], tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  file.write_text(file.read_text()[:50])
  trained = run_command(train.main, *command(tmp_path / 'run'))
  for result in (trained, draw(tmp_path / 'run', '--out', tmp_path / 'x.png')):
    assert result.status == 2 and 'config.json: is not a config of this version of ddgan_jax' in result.err
    assert result.err.count('\n') == 1


def test_losses_that_are_not_finite_stop_the_run(command, tmp_path):
  result = run_command(train.main, *command(tmp_path / 'run', '--config.optim.lr_g=1e30', '--config.optim.lr_d=1e30'))
  assert result.status == 2
  assert 'not finite at step' in result.err and 'there is no checkpoint yet' in result.err
  assert not list((tmp_path / 'run').glob('checkpoints/*'))
