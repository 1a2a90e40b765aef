"""What all commands share: several calls in one process, help, recipes by name, resuming, and the program `ddgan`."""

import json
import logging
import os
import re
import subprocess
import sys

import absl.logging
import numpy as np
import pytest
from absl import flags

import ddgan_jax
from ddgan_jax import convert, edit, evaluate, export, prepare, sample
from ddgan_jax import main as train
from ddgan_jax.benchmark import __main__ as benchmark
from ddgan_jax.cli import app, ddgan, options
from ddgan_jax.compare import __main__ as compare
from ddgan_jax.config import recipes
from ddgan_jax.reporting import tensorboard
from tests import support
from tests.reporting.test_reporting import read_hparams
from tests.support import ROOT, programs
from tests.support.commands import run_command, succeed

MODULES = {
    'train': train, 'sample': sample, 'evaluate': evaluate, 'edit': edit, 'prepare': prepare, 'compare': compare,
    'benchmark': benchmark, 'convert': convert, 'export': export}


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('configs') / 'tiny.py'
  fields = support.quick_config_dict()
  fields['train'] |= {'num_steps': 50, 'checkpoint_every': 2, 'sample_every': 50}
  path.write_text(support.config_text(fields))
  return path


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
  with pytest.MonkeyPatch.context() as patch:
    programs.share(patch)
    yield


@pytest.fixture(scope='module')
def started(config_file, tmp_path_factory):
  """The workdir of a run that was started with 4 steps instead of the recipe's 50."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  output = succeed(train.main, '--config', config_file, '--workdir', workdir, '--config.train.num_steps=4',
                 '--config.optim.lr_g=3e-4')
  assert 'Finished 4 steps' in output
  return workdir


def test_commands_leave_the_process_unchanged(started, tmp_path):
  """Unchanged: absl's global flags, the command line, loggers, signal handlers and the working directory."""
  import signal

  def process_state():
    return (set(flags.FLAGS), list(sys.argv), absl.logging.get_verbosity(), logging.root.level,
            list(logging.root.handlers), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            os.getcwd())

  before = process_state()
  for seed in (0, 1):
    succeed(sample.main, '--workdir', started, '--num=2', f'--seed={seed}', '--out', tmp_path / f'{seed}.npz')
  succeed(export.main, '--workdir', started, '--safetensors', tmp_path / 'x.safetensors')
  assert run_command(sample.main, '--workdir', started, '--num=0').status == 2
  assert 'has finished its 4 steps' in succeed(train.main, '--workdir', started)
  assert process_state() == before
  images = [np.load(tmp_path / f'{seed}.npz')['images'] for seed in (0, 1)]
  assert (images[0] != images[1]).any()


@pytest.mark.parametrize('name', MODULES)
@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_shows_the_docstring_and_the_flags(name, flag):
  module = MODULES[name]
  out = succeed(module.main, '--workdir=x', flag)
  assert out.startswith(module.__doc__.strip()) and f'`ddgan {name} ' in out.splitlines()[0] or name == 'convert'
  shown = re.findall(r'^  --(?:\[no\])?(\w+)$', out, re.MULTILINE)
  assert shown == list(options.flag_values(module._define_flags)) and 'logtostderr' not in shown


@pytest.mark.parametrize('name, flag', [
    ('sample', 'workdir'), ('export', 'workdir'), ('edit', 'workdir'), ('train', 'config'), ('prepare', 'config'),
    ('compare', 'config'), ('benchmark', 'config')])
def test_a_missing_required_flag_is_named(name, flag):
  result = run_command(MODULES[name].main)
  assert result.status == 2 and result.err.startswith(f'Error: --{flag} is required') and result.err.count('\n') == 1


@pytest.mark.parametrize('arguments, message', [
    (['--config', 'digit'], "no recipe 'digit'; did you mean digits? The recipes are celebahq_256, cifar10, digits,"),
    (['--config', 'folder:12'], "--config: image size '12' is not supported; use one of 8, 16, 32, 64, 128, 256"),
    (['--config', 'digits:12'], 'digits.py raised TypeError: get_config() takes 0 positional arguments but 1'),
    (['--config', 'digits', '--config.optim.lr=1'], '--config.optim.lr: no such field; did you mean --config.optim.'),
    (['--config', 'digits', '--workdr', 'x'], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    (['--config.train.num_steps=3'], '--config is required with --config.train.num_steps; use --config=RECIPE'),
    (['--workdir', 'nowhere'], '--config is required, because nowhere has no run to resume; the recipes are '),
])
def test_errors_are_one_sentence(arguments, message, tmp_path):
  result = run_command(train.main, *arguments, cwd=tmp_path)
  assert result.status == 2 and message in result.err and result.err.count('\n') == 1, result.err
  assert not result.out and not list(tmp_path.iterdir())


def parsed(*argv):
  return options.parse(lambda define: define.config(), list(map(str, argv))).config


def test_a_recipe_is_found_by_name_path_and_argument(tmp_path, monkeypatch):
  """From any folder; overrides of its fields may stand anywhere on the command line."""
  monkeypatch.chdir(tmp_path)
  assert 'digits' in recipes.names() and parsed('--config=digits').fields.data.name == 'digits'
  named, at_path = (parsed('--config', f'{spec}:16') for spec in ('folder', ROOT / 'configs' / 'folder.py'))
  assert named == at_path and named.name == 'folder' and named.fields.data.image_size == 16
  (tmp_path / 'mine.py').write_text('get_config = lambda: {"train": {"num_steps": 7}, "eval": {"metrics": ["is"]}}')
  recipe = parsed('--config.train.log_every', '3', '--noconfig.data.flip', '--config', 'mine.py')
  assert recipe.name == 'mine' and recipe.overrides == {'train.log_every': 3, 'data.flip': False}
  assert recipe.fields.train.to_dict().items() >= {'num_steps': 7, 'log_every': 3, 'sample_every': 5000}.items()
  assert recipe.fields.eval.metrics == ('is',)


def test_overrides_come_from_the_arguments_not_from_sys_argv(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['pytest', '--config.train.num_steps=3', '--config=cifar10'])
  recipe = parsed('--config=digits', '--config.seed=5')
  assert recipe.overrides == {'seed': 5} and recipe.fields.train.num_steps == 8000


def test_a_workdir_alone_resumes_its_run(started, tmp_path):
  """With the run's own fields; overrides on the command line are checked as usual."""
  import shutil

  shutil.copytree(started, tmp_path / 'run')
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  refused = run_command(train.main, '--workdir', tmp_path / 'run', '--config.optim.lr_g=1e-3')
  assert refused.status == 2 and 'optim.lr_g was 0.0003, is 0.001' in refused.err
  for flag, message in (('--config.train.num_steps=0', 'use at least 1'), ('--config.optim.lr=1', 'no such field')):
    refused = run_command(train.main, '--workdir', tmp_path / 'run', flag)
    assert refused.status == 2 and message in refused.err
  out = succeed(train.main, '--workdir', tmp_path / 'run', '--config.train.num_steps=6')
  assert 'Resumed at step 4' in out and 'Finished 6 steps' in out
  stored['train']['num_steps'] = 6
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == stored


def test_tensorboard_shows_a_resumed_run_as_one_session(config_file, tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  for num_steps in (2, 4):
    succeed(train.main, '--config', config_file, '--workdir', tmp_path / 'run', '--config.train.log_every=1',
            f'--config.train.num_steps={num_steps}', events=tensorboard._open_writer)
    group, fields = read_hparams(tmp_path / 'run')
    assert group == str(tmp_path / 'run') and fields['train.num_steps'] == num_steps
  assert fields['generator.ch_mult'] == '1' and fields['eval.metrics'] == ','.join(ddgan_jax.load_config(
      tmp_path / 'run').eval.metrics)
  events = EventAccumulator(str(tmp_path / 'run')).Reload()
  assert [event.step for event in events.Tensors('loss/d')] == [1, 2, 3, 4]
  groups = {tag.partition('/')[0] for tag in events.Tags()['tensors']} - {'_hparams_'}
  assert groups == {'grad_norm', 'logits', 'loss', 'lr', 'memory', 'samples', 'speed'}


def test_omitted_overrides_keep_the_values_of_the_run(started, config_file):
  """Fields that may change keep the run's value, with a message; other fields are refused, and nothing is trained."""
  message = f'{started} keeps train.num_steps=4 (the recipe has 50); set a field on the command line to change it.\n'
  result = run_command(train.main, '--config', config_file, '--workdir', started)
  assert result.status == 2 and result.out == message and 'optim.lr_g was 0.0003, is 0.00016' in result.err
  out = succeed(train.main, '--config', config_file, '--workdir', started, '--config.optim.lr_g=3e-4')
  assert out.startswith(message + f'{started} has finished its 4 steps')


def test_without_a_checkpoint_the_command_line_decides(config_file, tmp_path):
  stored = support.quick_config_dict()
  stored['train']['num_steps'] = 4
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  recipe = parsed('--config', config_file)
  assert train._config(recipe, str(tmp_path))[0].train.num_steps == 50
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  assert train._config(recipe, str(tmp_path))[0].train.num_steps == 4


def test_ddgan_lists_its_commands():
  for arguments in ([], ['--help'], ['help']):
    out = succeed(ddgan.main, *arguments)
    assert re.findall(r'^  (\w+)', out, re.MULTILINE) == list(MODULES)
  assert succeed(ddgan.main, '--version') == f'ddgan_jax {ddgan_jax.__version__}\n'
  result = run_command(ddgan.main, 'trian', '--config', 'digits')
  assert result == (2, '', 'Error: trian: no such command; did you mean train?\n')


def test_ddgan_calls_the_command(started, tmp_path):
  for main, words in ((ddgan.main, ['sample']), (sample.main, [])):
    succeed(main, *words, '--workdir', started, '--num=2', '--out', tmp_path / f'{len(words)}.npz')
  np.testing.assert_array_equal(*(np.load(tmp_path / f'{i}.npz')['images'] for i in (0, 1)))


def test_every_command_exits_with_its_status():
  """`python -m ddgan_jax.MODULE`, and `python -m ddgan_jax NAME`."""
  modules = [f'ddgan_jax.{module.removesuffix(".__main__")}' for module, _ in ddgan.COMMANDS.values()]
  lines = [*([module] for module in modules), ['ddgan_jax', 'compare']]
  processes = [subprocess.Popen([sys.executable, '-m', *line, '--no_such_flag'], cwd=ROOT, stderr=subprocess.PIPE,
                                text=True) for line in lines]
  for process in processes:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and err == "Error: Unknown command line flag 'no_such_flag'\n", err


def test_internal_errors_are_raised():
  def fail(args):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    app.run(fail, lambda define: None, '', [])
