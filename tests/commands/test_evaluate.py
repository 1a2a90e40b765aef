"""The evaluation command, and evaluation during training, on a tiny run."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ddgan_jax import config as config_lib
from ddgan_jax import evaluate
from ddgan_jax import main as train
from ddgan_jax.config import protocols, recipes
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


def test_several_seeds(trained, tmp_path):
  """Mean, standard deviation and minimum over seeds, each as in a command of its own."""
  flags = ['--workdir', trained[0], '--metrics', 'modes', '--num', '60', '--force']
  single = []
  for seed in (4, 5, 6):
    succeed(evaluate.main, *flags, '--seed', seed, '--out', tmp_path / 'one.json')
    single.append(json.loads((tmp_path / 'one.json').read_text())['metrics']['fd_classifier']['value'])
  output = succeed(evaluate.main, *flags, '--seed', 4, '--seeds', 3, '--out', tmp_path / 'all.json')
  report = json.loads((tmp_path / 'all.json').read_text())
  entry = report['metrics']['fd_classifier']
  assert report['seed'] == 4 and report['seeds'] == 3 and entry['values'] == single and len(set(single)) == 3
  assert (entry['value'], entry['std'], entry['minimum']) == pytest.approx(
      (np.mean(single), np.std(single, ddof=1), min(single)))
  assert 'mean ± standard deviation of 3 seeds' in output and f'(minimum {min(single):.5g})' in output


def test_authenticity_beside_held_out_images(trained, tmp_path):
  output = succeed(
      evaluate.main, '--workdir', trained[0], '--metrics', 'authenticity_classifier', '--num', '60', '--force',
      '--held_out', 'test', '--closest', tmp_path / 'closest.png', '--out', tmp_path / 'x.json')
  entry = json.loads((tmp_path / 'x.json').read_text())['metrics']['authenticity_classifier']
  assert entry['n_reference'] == 1498 and entry['n_held_out'] == 299
  # Held-out digits resemble training digits as these resemble each other; samples of an untrained run do not.
  assert 0.3 < entry['of_held_out'] < 0.7 and 0 <= entry['value'] <= 1
  assert f'(held-out images: {entry["of_held_out"]:.5g}, n = 299)' in output
  with Image.open(tmp_path / 'closest.png') as image:
    assert image.size == (10 * 50 + 2, 16 + 2 * 50 + 2)


def test_protocols_set_their_flags():
  args = types.SimpleNamespace(
      protocol='stacked_mnist', workdir='runs/x', metrics=None, num=None, seeds=None, splits=None, reference=None,
      jpeg=False, any_weights=False, num_timesteps=None, sigma_rel=None)
  protocols.complete(args)
  assert (args.metrics, args.num, args.seeds, args.splits) == (['modes'], 26_000, 1, 10)
  protocols.check_data('stacked_mnist', config_lib.from_config_dict(recipes.load('stacked_mnist')))
  protocols.check_data('ddgan_cifar10', config_lib.from_config_dict(recipes.load('cifar10')))
  said = protocols.describe('stacked_mnist')
  assert said.startswith('Protocol stacked_mnist (metrics modes, num 26,000, seeds 1), Lin et al.')


@pytest.mark.parametrize('flags, message', [
    (['--protocol', 'stacked_mnist'], "data.name is 'digits'; use 'mnist' with --protocol stacked_mnist"),
    (['--protocol', 'edm', '--any_weights'], '--any_weights is True; omit it with --protocol edm'),
    (['--seed', str(2**32 - 1), '--seeds', '2', '--force'], 'use seeds below 2^32'),
    (['--protocol', 'ddgan_cifar10'], "data.name is 'digits'; use 'cifar10' with --protocol ddgan_cifar10"),
    (['--protocol', 'edm', '--num', '10000'], '--num is 10000; use 50000 with --protocol edm, or omit it'),
    (['--protocol', 'edm', '--seeds', '1'], '--seeds is 1; use 3 with --protocol edm, or omit it'),
    (['--protocol', 'edm', '--metrics', 'fid,is'], '--metrics is fid,is; use fid with --protocol edm, or omit it'),
    (['--protocol', 'edm', '--reference', 'x.npz'], '--reference is x.npz; omit it with --protocol edm'),
    (['--protocol', 'edm', '--jpeg'], '--jpeg is True; omit it with --protocol edm'),
    (['--metrics', 'fid', '--held_out', 'x'], '--held_out: use it with --metrics authenticity_dinov2'),
    (['--metrics', 'authenticity_vgg16', '--closest', 'x.gif'], "--closest is 'x.gif'; use a .png"),
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
