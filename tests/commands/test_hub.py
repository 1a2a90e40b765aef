"""Models on the Hugging Face Hub: upload, download, the cache, the card, and every error; against a local server."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from huggingface_hub import constants
from PIL import Image

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import convert, edit, evaluate, export, sample, train_state
from ddgan_jax import main as train
from ddgan_jax.cli import image_output, model_card, model_output
from ddgan_jax.compare import __main__ as compare
from ddgan_jax.config import ConfigError, UserError, exported
from ddgan_jax.interop import hub as hub_lib
from ddgan_jax.metrics import reports, statistics
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs.checkpoints import CheckpointError
from ddgan_jax.training import loop
from tests.objectives.test_ablations import random_params
from tests.support import command_environment, hub_server, programs, quick_config_dict
from tests.support.commands import run_command, succeed

FILES = ['README.md', 'config.json', 'model.safetensors', 'samples.png']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of four steps, with private paths in its config and one evaluation."""
  home = tmp_path_factory.mktemp('home_of_alice')
  config = config_lib.from_config_dict(quick_config_dict(data_dir=str(home / 'tfds'), cache_dir=str(home / 'cache')))
  config = dataclasses.replace(config, train=dataclasses.replace(
      config.train, num_steps=4, sample_every=4, checkpoint_every=4, num_samples=16))
  with pytest.MonkeyPatch.context() as patch:
    programs.share(patch)
    patch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
    loop.train_and_evaluate(config, str(home / 'run'))
  params = ddgan_jax.load(home / 'run').params
  report = {
      'images': f'{home}/run, step 4', 'n': 20_000, 'reference': f'{home}/private photos/held_out.npz',
      'reference_digest': 'abc', 'n_reference': 1_498, 'biased': False, 'jpeg': False, 'step': 4, 'seed': 0,
      'num_timesteps': 2, 'generator_digest': statistics.digest(params), 'metrics': {
          'fid': {'value': 12.34567, 'features': 'FID Inception', 'features_digest': 'd'},
          'modes': {'value': 9, 'of_reference': 10, 'n_reference': 1_498, 'out_of': 10,
                    'features': 'classifier of the data', 'features_digest': 'e'}}}
  reports.save(str(home / 'run'), report)
  reports.save(str(home / 'run'), report | {'generator_digest': 'of other parameters', 'n': 777})
  return home / 'run'


@pytest.fixture(scope='module')
def folder(workdir, tmp_path_factory):
  """The folder that the command writes."""
  out = tmp_path_factory.mktemp('folder') / 'model'
  output = succeed(export.main, '--workdir', workdir, '--folder', out, '--license', 'cc-by-4.0')
  assert f'{out}: the EMA of step 4 of {workdir}' in output and 'no metrics' not in output
  return out


@pytest.fixture
def server(tmp_path, monkeypatch):
  with hub_server.connected(monkeypatch, tmp_path) as server:
    yield server


def put(server, folder, name='me/digits', private=False):
  """Makes a repository with the files of a folder."""
  repository = server.repositories[name] = hub_server.Repository(private)
  repository.commits.append({path.name: path.read_bytes() for path in folder.iterdir()})
  return repository


def error_of(call, *arguments):
  with pytest.raises(UserError) as caught:
    call(*arguments)
  return str(caught.value)


def samples(run):
  return np.asarray(run.sample(jax.random.key(3), 5))


def test_a_run_travels_through_the_hub(workdir, server, tmp_path, monkeypatch):
  """One commit, a private repository, samples bit for bit, only the needed files, and no token anywhere."""
  result = run_command(export.main, '--workdir', workdir, '--hub', 'me/digits', '--private', '--license', 'cc-by-4.0')
  assert result.status == 0, result.err
  assert 'hf://me/digits: the EMA of step 4 of' in result.out and f'{server.url}/me/digits' in result.out
  repository = server.repositories['me/digits']
  assert repository.private and repository.messages[1:] == [f'Step 4, exported by ddgan_jax {ddgan_jax.__version__}']
  assert sorted(repository.commits[-1]) == FILES and repository.large == {'model.safetensors', 'samples.png'}

  expected = ddgan_jax.load(workdir)
  run = ddgan_jax.load('hf://me/digits')
  jax.tree.map(np.testing.assert_array_equal, run.params, expected.params)
  np.testing.assert_array_equal(samples(run), samples(expected))
  assert run.step == 4 and run.workdir == 'hf://me/digits' and "workdir='hf://me/digits'" in repr(run)
  assert server.requested('resolve/.*(config.json|model.safetensors)') > 0
  assert not server.requested('GET .*resolve/.*(README.md|samples.png)')

  output = succeed(sample.main, '--workdir', 'hf://me/digits', '--num', 3, '--seed', 7, '--out', tmp_path / 'x.npz')
  assert 'from step 4 of hf://me/digits' in output
  np.testing.assert_array_equal(np.load(tmp_path / 'x.npz')['images'], image_output.generate(expected, 3, seed=7))

  written = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert len(written) > 3 and not any(hub_server.TOKEN.encode() in path.read_bytes() for path in written)
  assert not any(hub_server.TOKEN in text for text in (result.out, result.err, output, repr(run)))
  assert not any(hub_server.TOKEN.encode() in content for content in repository.commits[-1].values())


def test_the_cache_works_offline(workdir, folder, server, monkeypatch):
  """After one download: with the server gone, in offline mode, and for a revision by its hash."""
  repository = put(server, folder)
  expected = samples(ddgan_jax.load('hf://me/digits'))
  first = repository.sha()
  repository.commits.append({'README.md': b'no model'})
  assert 'hf://me/digits has no config.json; use a repository written by' in error_of(ddgan_jax.load, 'hf://me/digits')
  np.testing.assert_array_equal(samples(ddgan_jax.load(f'hf://me/digits@{first}')), expected)
  repository.commits.pop()
  ddgan_jax.load('hf://me/digits')
  server.shutdown()
  server.server_close()
  downloads = len(server.requests)
  for address in ('hf://me/digits', f'hf://me/digits@{first}'):
    np.testing.assert_array_equal(samples(ddgan_jax.load(address)), expected)
  message = error_of(ddgan_jax.load, 'hf://me/other')
  assert message == 'hf://me/other cannot be reached and is not in the cache; check the network'
  result = run_command(export.main, '--workdir', workdir, '--hub', 'me/digits')
  assert result == (2, '', 'Error: the Hub cannot be reached; check the network\n')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  np.testing.assert_array_equal(samples(ddgan_jax.load('hf://me/digits')), expected)
  message = error_of(ddgan_jax.load, 'hf://me/other')
  assert message == (
      'hf://me/other cannot be reached and is not in the cache: HF_HUB_OFFLINE is set; unset it to use the network')
  assert len(server.requests) == downloads
  result = run_command(export.main, '--workdir', workdir, '--hub', 'me/digits')
  assert result.status == 2 and 'Error: the Hub cannot be reached: HF_HUB_OFFLINE is set; unset it' in result.err


def test_the_program_samples_from_the_hub(folder, tmp_path):
  """In a process of its own, which only knows the environment variables; then again without the server."""
  environment = {name: value for name, value in command_environment().items() if not name.startswith('HF_')}
  environment |= {'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_DISABLE_XET': '1'}
  with hub_server.running() as server:
    put(server, folder, 'me/digits')
    environment['HF_ENDPOINT'] = server.url
    for name in ('one', 'two'):
      result = subprocess.run(
          [sys.executable, '-m', 'ddgan_jax', 'sample', '--workdir', 'hf://me/digits', '--num', '2', '--out',
           f'{name}.npz'], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
      assert result.returncode == 0 and '2 images from step 4 of hf://me/digits' in result.stdout, result.stderr
      server.shutdown()
      server.socket.close()
  one, two = (np.load(tmp_path / f'{name}.npz')['images'] for name in ('one', 'two'))
  np.testing.assert_array_equal(one, two)


def test_a_folder_is_what_the_hub_gets(workdir, folder, server, tmp_path):
  succeed(export.main, '--workdir', workdir, '--hub', 'me/digits', '--license', 'cc-by-4.0', '--folder', tmp_path / 'x')
  uploaded = server.repositories['me/digits'].commits[-1]
  for path in folder.iterdir():
    assert uploaded[path.name] == (tmp_path / 'x' / path.name).read_bytes()
    if path.name != 'model.safetensors':  # the order of its metadata is random
      assert uploaded[path.name] == path.read_bytes().replace(b'OWNER/NAME', b'me/digits')
  run, expected = ddgan_jax.load(folder), ddgan_jax.load(workdir)
  np.testing.assert_array_equal(samples(run), samples(expected))
  assert ddgan_jax.load_config(folder) == run.config == exported.without_paths(expected.config)


def test_no_path_of_this_machine_travels(workdir, folder):
  assert sorted(path.name for path in folder.iterdir()) == FILES
  for path in folder.iterdir():
    assert b'alice' not in path.read_bytes() and b'private photos' not in path.read_bytes(), path
  config = ddgan_jax.load_config(workdir)
  own = dataclasses.replace(
      config, data=dataclasses.replace(config.data, name='npz', path='~/alice/faces.npz', resize='crop'),
      train=dataclasses.replace(config.train, init_from='/home/alice/run'))
  stripped = exported.without_paths(own)
  assert stripped.data.path == 'faces.npz' and not stripped.train.init_from
  assert 'alice' not in config_lib.to_json(stripped)
  for path, expected in (
      ('/home/a/photos/', 'photos'), ('..', 'data'), ('/', 'data'), (r'C:\Users\alice\x.npz', 'x.npz')):
    other = dataclasses.replace(own, data=dataclasses.replace(own.data, path=path))
    assert exported.without_paths(other).data.path == expected
  assert exported.without_paths(stripped) == stripped


def test_the_card_describes_the_run(folder):
  card = (folder / 'README.md').read_text()
  _, front, text = card.split('---\n', 2)
  assert yaml.safe_load(front) == {
      'license': 'cc-by-4.0', 'library_name': 'ddgan_jax', 'pipeline_tag': 'unconditional-image-generation',
      'tags': ['ddgan_jax', 'jax', 'flax', 'denoising-diffusion-gan', 'ddgan']}
  for expected in (
      '# Denoising diffusion GAN of digits\n', 'samples 8x8 grey images', 'in 2 evaluations of its generator',
      '11,440 parameters', 'CC BY 4.0', '1,498 images', '4 of 4 steps, batch size 32',
      '2, `vp` schedule, beta 0.1 to 20',
      'Sampled in 2 steps with seed 0; reference: held_out.npz, n = 1,498.',
      '| FID | 12.346 | 20,000 |  | FID Inception |',
      '| modes found | 9 of 10 | 20,000 | reference: 10, n = 1,498 | classifier of the data |',
      'xiao2022tackling', 'The weights: `cc-by-4.0`',
      'Memorisation was not tested: the model may reproduce some of 1,498 training images'):
    assert expected in text, expected
  assert '777' not in text
  assert Image.open(folder / 'samples.png').size == (202, 202)  # the run's own grid of 16 samples
  assert '![Samples of the model](samples.png)' in text


def test_cards_of_several_seeds_and_other_averages():
  config = config_lib.from_config_dict(quick_config_dict())
  params = {'kernel': np.zeros((2, 3), np.float32)}
  run = ddgan_jax.Run(None, dataclasses.make_dataclass('Schedule', ['num_timesteps'])(2), config, 40, params)
  measured = {'num_timesteps': 2, 'seed': 3, 'seeds': 2, 'protocol': 'edm', 'n': 50_000, 'metrics': {
      'fid': {'value': 5.0, 'std': 0.25, 'minimum': 4.8, 'features': 'FID Inception'},
      'is': {'value': 9.0, 'std': 0.1, 'minimum': 8.9, 'features': 'FID Inception'},
      'authenticity_vgg16': {'value': 0.5, 'of_held_out': 0.6, 'n_held_out': 99, 'features': 'VGG16 fc2'}}}
  card = model_card.make(run, 'me/x', None, None, [measured], None, 0.1)
  assert 'Sampled in 2 steps with seeds 3 to 4, mean ± standard deviation; protocol edm.' in card
  assert '| FID | 5 ± 0.25 (minimum 4.8) | 50,000 |' in card and '| Inception score | 9 ± 0.1 | 50,000 |' in card
  assert 'held-out images: 0.6, n = 99' in card and 'For memorisation see authenticity above' in card
  assert '6 parameters (an EMA with sigma_rel 0.1)' in card


def test_the_code_of_the_card_runs(folder, monkeypatch):
  (block,) = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)
  values = {}
  exec(block.replace('hf://OWNER/NAME', str(folder)), values)
  assert values['pixels'].shape == (16, 8, 8, 1) and values['pixels'].dtype == np.uint8


def test_an_exported_model_is_exported_again(folder, tmp_path):
  """Without the run's grid and evaluation: the picture is drawn, and the card says what is missing."""
  output = succeed(export.main, '--workdir', folder, '--folder', tmp_path / 'x')
  assert 'The model card has no metrics; ddgan evaluate measures them.' in output
  card = (tmp_path / 'x' / 'README.md').read_text()
  assert 'This export has no measurements.' in card
  assert 'No licence of the weights is stated' in card and 'license:' not in card
  assert Image.open(tmp_path / 'x' / 'samples.png').size == (402, 402)
  np.testing.assert_array_equal(samples(ddgan_jax.load(tmp_path / 'x')), samples(ddgan_jax.load(folder)))


def untrained(tmp_path, **fields):
  """A run with random parameters, without a workdir, and an empty folder."""
  raw = quick_config_dict(**fields.pop('data', {}))
  config = config_lib.from_config_dict(raw | {'generator': raw['generator'] | fields})
  params = random_params(train_state.abstract_state(config, None).ema_params)
  (tmp_path / 'x').mkdir()
  return ddgan_jax.Run(*train_state.make_sampler(config, params), config, 0, params), tmp_path / 'x'


def test_the_picture_of_a_run_with_labels_has_a_row_for_each(tmp_path):
  run, folder = untrained(tmp_path, num_classes=10, label_dropout=0.0)
  model_output.write(str(folder), run, 'me/x', None, None)
  assert Image.open(folder / 'samples.png').size == (6 * 50 + 2, 11 * 50 + 2)  # 64 = 10 * 6 + 4
  assert 'not selected; one row per class' in (folder / 'README.md').read_text()


def test_no_picture_shows_training_images(tmp_path):
  """The grids of a run with data.condition have conditions and true images."""
  run, folder = untrained(tmp_path, data={'condition': 'lowres:2'})
  model_output.write(str(folder), run, 'me/x', None, None)
  assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
  assert 'samples.png)' not in (folder / 'README.md').read_text()


@pytest.mark.parametrize('fields, expected', [
    ({'generator': {'num_classes': 10}}, ['label=0)  # [16, 8, 8, 1] float32', '10 classes']),
    ({'data': {'condition': 'lowres:2'}},
     ['pipeline_tag: "image-to-image"', 'condition=condition)  # float32 [4, 4, 1]', '--condition condition.png']),
    ({'data': {'name': 'cifar10', 'num_channels': 3}}, ['datasets: ["uoft-cs/cifar10"]', '`cifar10` of TFDS']),
    ({'data': {'name': 'npz', 'path': 'x.npz', 'value_range': (250.0, 320.0)}},
     ['to_values(images, run.config.data.value_range)', '8x8 images of grey float32 values', 'images, npz `x.npz`']),
    ({'data': {'name': 'gaussians25', 'image_size': 1, 'num_channels': 2}}, ['points in the plane', '`gaussians25`']),
], ids=['labels', 'a condition', 'a data set of the Hub', 'values', 'points'])
def test_cards_of_other_runs(fields, expected):
  raw = quick_config_dict()
  for section, values in fields.items():
    raw[section] = raw[section] | values
  config = config_lib.from_config_dict(raw)
  params = {'kernel': np.zeros((2, 3), np.float32)}
  run = ddgan_jax.Run(None, dataclasses.make_dataclass('Schedule', ['num_timesteps'])(2), config, 40, params)
  card = model_card.make(run, 'me/x', None, None, [], None)
  memorised = '' if config.data.is_points else 'some of its training images'
  assert all(text in card for text in (*expected, memorised)), card
  yaml.safe_load(card.split('---\n')[1])


def test_only_reading_commands_accept_the_hub(folder, server, tmp_path):
  put(server, folder)
  address = 'hf://me/digits'
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'x.png')
  succeed(edit.main, '--workdir', address, '--task', 'variations', '--image', tmp_path / 'x.png', '--num', 1, '--out',
          tmp_path / 'y.png')
  output = succeed(export.main, '--workdir', address, '--safetensors', tmp_path / 'x.safetensors', '--folder',
                   tmp_path / 'again')
  assert f'{tmp_path}/again: the EMA of step 4 of {address}' in output
  np.testing.assert_array_equal(samples(ddgan_jax.load(tmp_path / 'x.safetensors')), samples(ddgan_jax.load(folder)))
  only_ema = 'an exported model with only the EMA parameters; use the workdir of a run'
  for main, *flags in (
      (train.main,), (train.main, '--config', 'digits'), (compare.main, '--config', 'digits'),
      (convert.main, '--to_pytorch', tmp_path / 'x.pth', '--resume_file'),
      (convert.main, '--from_pytorch', 'x.pth', '--config', 'cifar10')):
    for name in (address, folder):
      result = run_command(main, '--workdir', name, *flags)
      assert result == (2, '', f"Error: --workdir is '{name}', {only_ema}\n"), result
  result = run_command(train.main, '--config', 'digits', '--workdir', tmp_path / 'new',
                       f'--config.train.init_from={address}')
  assert result.status == 2 and 'use the workdir of a run instead of an exported model' in result.err
  with pytest.raises(CheckpointError, match='step is 3; use 4, the only step in hf://me/digits'):
    ddgan_jax.load(address, step=3)
  with pytest.raises(CheckpointError, match='sigma_rel is 0.1; use it with the workdir of a run'):
    ddgan_jax.load(address, sigma_rel=0.1)


def test_an_exported_model_is_evaluated_on_data_of_the_user(folder, server, tmp_path, monkeypatch):
  put(server, folder)
  result = run_command(evaluate.main, '--workdir', 'hf://me/digits', '--metrics', 'is', '--num', 16, '--force')
  assert result.status == 2 and '--config is required with --workdir hf://me/digits; use the recipe' in result.err
  measured = {'images': 'x', 'n': 16, 'reference': None, 'reference_digest': None, 'n_reference': None, 'biased': True,
              'metrics': {'is': {'value': 1.0, 'features': 'stand-in'}}}
  monkeypatch.setattr('ddgan_jax.metrics.evaluator.Evaluator', lambda *arguments: mock_evaluator(measured))
  flags = ['--config', 'digits', '--metrics', 'is', '--num', 16, '--force']
  before = sorted(folder.iterdir())
  for name in ('hf://me/digits', folder):
    assert 'Not saved; use --out to write JSON.' in succeed(evaluate.main, '--workdir', name, *flags)
  assert sorted(folder.iterdir()) == before
  succeed(evaluate.main, '--workdir', 'hf://me/digits', *flags, '--out', tmp_path / 'x.json')
  assert json.loads((tmp_path / 'x.json').read_text())['step'] == 4


def mock_evaluator(report):
  class Evaluator:
    def evaluate(self, images):
      return dict(report)

  return Evaluator()


@pytest.mark.parametrize('address', [
    'hf://digits', 'hf://me/digits/x', 'hf://me/', 'hf:/me/digits', 'hf://me/../x', 'hf://me/digits@', 'hf://-/x',
    'hf://me/digits@a b', 'hf://me/x--y', 'hf://me/x.git', f'hf://me/{"x" * 100}'])
def test_malformed_addresses(address):
  with pytest.raises(ConfigError, match='^workdir is .*; use hf://OWNER/NAME or hf://OWNER/NAME@REVISION$'):
    ddgan_jax.load(address)


def test_addresses():
  assert hub_lib.parse('hf://me/My_digits-8.2') == ('me/My_digits-8.2', None)
  assert hub_lib.parse('hf://me/digits@refs/pr/1') == ('me/digits', 'refs/pr/1')


def test_refusals_of_the_hub(workdir, folder, server, monkeypatch):
  """Each is one sentence that repeats nothing that the server says, which could be the token."""
  put(server, folder, 'me/secret', private=True)
  assert error_of(ddgan_jax.load, 'hf://me/none') == (
      'hf://me/none is not found; check the name or, if it is private, run `hf auth login` or set HF_TOKEN to a token '
      'that may read it')
  assert error_of(ddgan_jax.load, 'hf://me/secret@v2') == (
      'hf://me/secret@v2 has no such revision; use a branch, tag or commit of the repository')
  for status, text in (
      (401, 'refused the token (401); run `hf auth login` or set HF_TOKEN'),
      (400, 'refused the request (400); check the name and --license'),
      (403, 'refused access (403); run `hf auth login` or set HF_TOKEN'),
      (500, 'answered with status 500; try again later')):
    server.refusal = status
    assert text in error_of(ddgan_jax.load, 'hf://me/secret')
  server.refusal = None

  def refused(*flags):
    result = run_command(export.main, '--workdir', workdir, '--hub', *flags)
    assert result.status == 2 and result.err.count('\n') == 1 and hub_server.TOKEN not in result.out + result.err
    return result.err

  assert 'hf://other/digits refused access (403); run `hf auth login` or set HF_TOKEN' in refused('other/digits')
  put(server, folder, 'me/public')
  assert '--private: hf://me/public exists and is public; use another name' in refused('me/public', '--private')
  assert len(server.repositories['me/public'].commits) == 2
  monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
  assert 'the Hub refused the token (401); run `hf auth login` or set HF_TOKEN' in refused('me/digits')
  assert 'refused the token (401)' in error_of(ddgan_jax.load, 'hf://me/secret')
  monkeypatch.delenv('HF_TOKEN')
  assert 'the Hub needs a login; run `hf auth login` or set HF_TOKEN to a token' in refused('me/digits')
  assert 'me/digits' not in server.repositories


def test_without_huggingface_hub(workdir, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  message = 'huggingface_hub is not installed; use pip install "ddgan_jax[hub]"'
  assert error_of(ddgan_jax.load, 'hf://me/digits') == message
  result = run_command(export.main, '--workdir', workdir, '--hub', 'me/digits')
  assert result == (2, '', f'Error: {message}\n')


@pytest.mark.parametrize('flags, message', [
    (['--hub', 'digits'], "--hub is 'digits'; use OWNER/NAME, of letters, digits, -, _ and ."),
    (['--safetensors', 'x.safetensors', '--private'], '--private: use it with --hub'),
    (['--safetensors', 'x.safetensors', '--license', 'mit'], '--license: use it with --hub or --folder'),
    (['--hub', 'me/x', '--license', 'a: b'],
     "--license is 'a: b'; use the Hub's name of a licence, such as apache-2.0"),
    (['--folder', '/'], "--folder is '/', which exists and is not an empty folder; use another"),
])
def test_wrong_flags(workdir, flags, message):
  assert run_command(export.main, '--workdir', workdir, *flags) == (2, '', f'Error: {message}\n')


def damaged(folder, path, kind):
  """Damages one copy of the files of a model."""
  shutil.copytree(folder, path)
  weights, config = path / 'model.safetensors', path / 'config.json'
  fields = json.loads(config.read_text())
  with safetensors.safe_open(weights, 'numpy') as file:
    metadata = file.metadata()
  if kind == 'newer':
    config.write_text(json.dumps(fields | {'quantum': {}}))
  elif kind == 'nested':
    config.write_text('[' * 100_000)
  elif kind == 'large':
    config.write_text(' ' * 2**21)
  elif kind == 'other':
    config.write_text(json.dumps(fields | {'seed': 7}))
  elif kind == 'cut':
    weights.write_bytes(weights.read_bytes()[:-4])
  elif kind == 'pickle':
    weights.write_bytes(b'\x80\x04cos\nsystem\n.')
  elif kind == 'step':
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights, metadata | {'step': 'x'})
  elif kind == 'shape':
    tensors = safetensors.numpy.load_file(weights)
    name = next(iter(tensors))
    safetensors.numpy.save_file(tensors | {name: np.zeros(3, np.float32)}, weights, metadata)


@pytest.mark.parametrize('kind, message', [
    ('newer', r'config.json is not a config of this version of ddgan_jax \(.*quantum.*\); use the version of ddgan_jax '
              'that wrote it'),
    ('nested', 'config.json is not a config of this version of ddgan_jax'),
    ('large', 'config.json is larger than 1,048,576 bytes'),
    ('other', 'config.json differs from the config in model.safetensors; use both files of one ddgan export'),
    ('cut', 'model.safetensors cannot be read as safetensors'),
    ('pickle', 'model.safetensors cannot be read as safetensors'),
    ('step', "model.safetensors has the step 'x' in its metadata"),
    ('shape', r'model.safetensors: .* is float32\[3\], but its config needs float32\['),
])
def test_damaged_repositories(folder, server, tmp_path, kind, message):
  damaged(folder, tmp_path / 'damaged', kind)
  put(server, tmp_path / 'damaged', 'me/damaged')
  for address in ('hf://me/damaged', str(tmp_path / 'damaged')):
    text = error_of(ddgan_jax.load, address)
    assert re.search(message, text) and text.startswith(address), text


def test_a_config_from_the_hub_names_no_file_of_this_machine(folder, server, tmp_path):
  """Even if the files were not written by this program."""
  shutil.copytree(folder, tmp_path / 'x')
  fields = json.loads((tmp_path / 'x' / 'config.json').read_text())
  fields['data'] |= {'cache_dir': '/etc/cron.d', 'data_dir': '/root'}
  fields['train'] |= {'init_from': '/home/me/run'}
  (tmp_path / 'x' / 'config.json').write_text(json.dumps(fields))
  put(server, tmp_path / 'x')
  config = ddgan_jax.load('hf://me/digits').config
  assert (config.data.cache_dir, config.data.data_dir, config.train.init_from) == ('', '', '')
