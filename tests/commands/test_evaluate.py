"""The evaluation command, and evaluation during training, on a tiny run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ddgan_jax import evaluate
from ddgan_jax import main as train
from tests.support import ROOT, command_environment, config_text, quick_config_dict, scalars
from tests.support.commands import run_command, succeed


@pytest.fixture(scope='module')
def trained(tmp_path_factory, digits_classifier):
  """The workdir and the output of a run that evaluates itself three times."""
  folder = tmp_path_factory.mktemp('evaluate')
  (folder / 'tiny.py').write_text(config_text(quick_config_dict()))
  fields = {
      'optim.lazy_reg': 1,  # one program to compile
      'train.num_steps': 30, 'train.eval_every': 10, 'train.checkpoint_every': 1000, 'train.keep_checkpoints': 1,
      'eval.metrics': 'modes', 'eval.num': 100, 'eval.batch_size': 50, 'eval.force': True}
  output = succeed(
      train.main, '--config', folder / 'tiny.py', '--workdir', folder / 'run',
      *(f'--config.{name}={value}' for name, value in fields.items()), events=scalars.Writer)
  return folder / 'run', output


def test_training_evaluates_and_keeps_the_best_checkpoint(trained):
  workdir, printed = trained
  distances = scalars.read(workdir, 'eval/fd_classifier')
  assert list(distances) == [10, 20, 30] and all(value > 0 for value in distances.values())
  assert printed.count('Fréchet distance, not FID') == 3 and 'step 20: n = 100; reference digits, n = 1,498' in printed
  kept = {int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()}
  assert kept == {30, min(distances, key=distances.get)}


def test_two_processes_report_the_same_metrics(trained, tmp_path):
  """One process, and two processes with four devices each: the same modes and distance."""
  workdir, _ = trained
  flags = ['--workdir', workdir, '--metrics', 'modes', '--num', '150', '--force', '--batch_size', '64']
  output = succeed(evaluate.main, *flags, '--out', tmp_path / 'alone.json')
  assert 'modes found' in output and 'Biased: fewer than 10,000 images.' in output
  command = [sys.executable, 'launch/local.py', '--processes', '2', '--devices', '4', '--', sys.executable, '-m',
             'ddgan_jax.evaluate', *flags, '--out', tmp_path / 'together.json']
  result = subprocess.run(
      list(map(str, command)), cwd=ROOT, env=command_environment(), capture_output=True, text=True,
      timeout=600)
  assert result.returncode == 0, result.stdout + result.stderr
  one, two = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('alone', 'together'))
  assert one['metrics']['modes'] == two['metrics']['modes'] and one['step'] == 30
  np.testing.assert_allclose(
      one['metrics']['fd_classifier']['value'], two['metrics']['fd_classifier']['value'], rtol=1e-6)


def test_each_seed_has_its_own_report(trained):
  """A second seed does not overwrite the first report; a report lists every condition."""
  workdir, _ = trained
  for seed in (0, 1):
    flags = ['--workdir', workdir, '--metrics', 'modes', '--num', '50', '--force', '--seed', seed]
    succeed(evaluate.main, *flags)
  reports = {path.name: json.loads(path.read_text()) for path in workdir.glob('evaluation_*')}
  assert sorted(reports) == ['evaluation_00000030.json', 'evaluation_00000030_2.json']
  assert [reports[name]['seed'] for name in sorted(reports)] == [0, 1]
  expected = {'images', 'n', 'step', 'seed', 'num_timesteps', 'jpeg', 'reference', 'reference_digest', 'n_reference',
           'generator_digest', 'biased', 'metrics'}
  assert all(set(report) == expected for report in reports.values())


@pytest.mark.parametrize('flags, message', [
    (['--num', '500'], '--num is 500; use at least 10,000, because fewer samples bias the metrics, or --force'),
    (['--metrics', 'sfid'], "--metrics is 'sfid'; use one of 'fid', 'is', 'kid', 'pr', 'dc', 'modes'"),
    (['--metrics', 'fid', '--inception', 'nowhere.pth'], 'nowhere.pth does not exist; use pt_inception'),
    (['--metrics', 'fid', '--inception', 'setup.py'], 'setup.py has the SHA-256 checksum'),
    (['--metrics', 'fd_dinov2', '--dinov2', 'nowhere.pth'], 'nowhere.pth does not exist; use dinov2_vitl14_pretrain'),
    (['--metrics', 'pr_dinov2', '--dinov2_model', 'vitb14', '--dinov2', 'setup.py'],
     'setup.py has the SHA-256 checksum'),
    (['--metrics', 'fid', '--reference', 'nowhere.npz'], 'nowhere.npz'),
    (['--images', 'x'], '--workdir and --images: use one of --workdir, --images and --statistics'),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_errors_are_one_sentence(trained, flags, message):
  result = run_command(evaluate.main, '--workdir', trained[0], *flags, cwd=ROOT)
  assert result.status == 2 and message in result.err and result.err.count('\n') == 1, result.err


@pytest.mark.parametrize('metrics', ['pr', 'fid,fid_clean'])
def test_a_file_of_statistics_is_of_one_distance(metrics):
  result = run_command(evaluate.main, '--config', 'digits', '--statistics', 'x.npz', '--metrics', metrics, cwd=ROOT)
  assert result.status == 2 and result.err.count('\n') == 1, result.err
  assert f'--metrics is {metrics}; use one of fid, fid_clean, fd_dinov2 with --statistics' in result.err
