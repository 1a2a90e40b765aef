"""Conversion to and from the original's files: the command, a resumed run with the original's losses, and errors."""

import dataclasses
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import convert, train_state
from ddgan_jax import main as train
from ddgan_jax.cli import image_output
from ddgan_jax.config import DiscriminatorConfig
from ddgan_jax.interop import pytorch, resume_file, torch_file, torch_writer
from ddgan_jax.interop.pytorch import InteropError
from ddgan_jax.runs.checkpoints import Checkpoints
from tests.models.test_generator import SMALL
from tests.objectives.test_ablations import random_params
from tests.support import (
  GOLDEN,
  generator_config,
  golden,
  nhwc,
  quick_config_dict,
  recipe,
  relative_error,
  tiny_config_dict,
)
from tests.support.commands import run_command, succeed
from tests.support.golden_steps import FOREVER, golden_steps

CONFIG = '''
import json
import ml_collections

def get_config():
  return ml_collections.ConfigDict(json.loads({!r}))
'''


def write_config(folder, **sections):
  (folder / 'config.py').write_text(CONFIG.format(json.dumps(sections)))
  return folder / 'config.py'


@pytest.fixture(scope='module')
def official(tmp_path_factory):
  """(config file, workdir, output) of the converted netG_tiny.pth, ready for training on other images."""
  folder = tmp_path_factory.mktemp('official')
  images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
  np.savez(folder / 'images.npz', images=images)
  _, options = golden('netG_tiny_io.npz')
  config = write_config(
      folder, data={'name': 'npz', 'path': str(folder / 'images.npz'), 'batch_size': 8},
      generator={name: value for name, value in options.items() if name != 'image_size'},
      discriminator={'ngf': 2, 't_emb_dim': 8}, optim={'r1_gamma': 0.0},
      train={'num_steps': 2, 'num_samples': 4, 'log_every': 1})
  printed = succeed(convert.main, '--from_pytorch', GOLDEN / 'netG_tiny.pth', '--config', config, '--workdir',
                    folder / 'run')
  return config, folder / 'run', printed


def test_an_imported_generator_samples(official):
  arrays, _ = golden('netG_tiny_io.npz')
  run = ddgan_jax.load(official[1])
  assert run.step == 0
  out = jax.jit(run.generator_fn)(nhwc(arrays['x']), arrays['t'].astype(np.int32), arrays['z'])
  assert relative_error(out, nhwc(arrays['out'])) < 1e-4
  images = image_output.generate(run, 2, seed=0)
  assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 10
  assert 'The file has no discriminator' in official[2] and 'diffusion.num_timesteps=4' in official[2]


def test_an_exported_generator_is_bit_identical(official, tmp_path):
  before = torch_file.read_state_dict(GOLDEN / 'netG_tiny.pth')
  succeed(convert.main, '--to_pytorch', tmp_path / 'netG.pth', '--workdir', official[1])
  after = torch_file.read_state_dict(tmp_path / 'netG.pth')
  assert [*after] == [*before] and all(name.startswith('module.') for name in after)
  for name in before:
    assert after[name].dtype == np.float32
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)
  loaded = ddgan_jax.load(official[1])
  reimported = pytorch.generator_params(after, loaded.config.generator)
  jax.tree.map(np.testing.assert_array_equal, reimported, loaded.params)


def test_training_continues_from_a_generator_alone(tmp_path):
  """With a new D: two Adam steps move no weight by more than a few learning rates."""
  fields = quick_config_dict()
  fields['generator'] = tiny_config_dict()['generator']
  fields['optim']['r1_gamma'] = 0.0
  fields['train']['num_steps'] = 2
  config, file, workdir = write_config(tmp_path, **fields), tmp_path / 'netG.pth', tmp_path / 'run'
  parsed = config_lib.from_config_dict(fields)
  params = random_params(train_state.abstract_state(parsed, None).g_params)
  torch_writer.write_checkpoint(file, pytorch.generator_state_dict(params, parsed.generator))
  succeed(convert.main, '--from_pytorch', file, '--config', config, '--workdir', workdir)
  printed = succeed(train.main, '--config', config, '--workdir', workdir)
  assert 'Finished 2 steps' in printed
  after = ddgan_jax.load(workdir)
  assert after.step == 2
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, after.params)
  assert 1e-5 < max(jax.tree.leaves(moved)) < 4 * parsed.optim.lr_g


@pytest.fixture(scope='module')
def steps():
  return golden_steps()


def original_content(state, steps):
  """The state in the original's format of 2021: integer step counts, and the EMA in the optimizer of G."""
  g = lambda params: pytorch.generator_state_dict(params, steps.g_config)
  d = lambda params: pytorch.discriminator_state_dict(params, steps.d_config)

  def optimizer(rate, adam, moments):
    entries = zip(*(tensors.values() for tensors in moments.values()))
    return {'state': {i: {'step': int(adam.count), **dict(zip(moments, entry))} for i, entry in enumerate(entries)},
            'param_groups': [{
                'lr': rate, 'betas': (0.5, 0.9), 'eps': 1e-8, 'weight_decay': 0, 'amsgrad': False,
                'initial_lr': rate, 'params': [*range(len(next(iter(moments.values()))))]}]}

  g_adam, d_adam = state.g_opt_state[0], state.d_opt_state[0]
  module = lambda tensors: {f'module.{name}': tensor for name, tensor in tensors.items()}
  return {
      'epoch': 1, 'global_step': int(state.step),
      'args': {'num_timesteps': 4, 'fir_kernel': [1, 3, 3, 1], 'use_geometric': False, 'lazy_reg': 2, 'r1_gamma': 5.0},
      'netG_dict': module(g(state.g_params)),
      'optimizerG': optimizer(
          1.6e-4, g_adam, {'exp_avg': g(g_adam.mu), 'exp_avg_sq': g(g_adam.nu), 'ema': g(state.ema_params)}),
      'schedulerG': {'last_epoch': 1},
      'netD_dict': module(d(state.d_params)),
      'optimizerD': optimizer(1.25e-4, d_adam, {'exp_avg': d(d_adam.mu), 'exp_avg_sq': d(d_adam.nu)}),
      'schedulerD': {'last_epoch': 1}}


@pytest.fixture(scope='module')
def resumed(steps, tmp_path_factory):
  """(config file, workdir, output, state after two golden steps, its content) of an imported content.pth."""
  folder = tmp_path_factory.mktemp('resumed')
  state = steps.initial_state()
  for i in range(2):
    state, _ = steps.step(state, i)
  content = original_content(state, steps)
  torch_writer.write_checkpoint(folder / 'content.pth', content)
  config = write_config(
      folder, data={'name': 'cifar10', 'batch_size': 8},
      generator={field: getattr(steps.g_config, field) for field in (
          'num_channels_dae', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'nz', 'z_emb_dim', 'n_mlp')},
      discriminator={'ngf': 4, 't_emb_dim': 16}, optim=dataclasses.asdict(steps.optim), train={'num_steps': FOREVER})
  printed = succeed(convert.main, '--from_pytorch', folder / 'content.pth', '--config', config, '--workdir',
                folder / 'run')
  return config, folder / 'run', printed, state, content


def restored(workdir):
  config = config_lib.from_json((workdir / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Checkpoints(workdir).restore(train_state.abstract_state(config, device), Checkpoints(workdir).latest_step())


def test_an_imported_resume_file_continues_with_the_original_losses(resumed, steps):
  _, workdir, printed, before, _ = resumed
  state = restored(workdir)
  jax.tree.map(np.testing.assert_array_equal, state.replace(rng=0), before.replace(rng=0))
  state = jax.device_get(state.replace(rng=before.rng))  # uncommitted, as before, so the same programs run
  for i in (2, 3):
    state, metrics = steps.step(state, i)
    steps.check_losses(metrics, i)
  assert 'both Adam states and the EMA' in printed and 'at step 2' in printed
  assert 'num_timesteps' not in printed and 'skip_rescale=True' in printed  # args has num_timesteps, not skip_rescale


def assert_same(a, b):
  assert type(a) is type(b)
  if isinstance(a, dict):
    assert [*a] == [*b]
    for key in a:
      assert_same(a[key], b[key])
  elif isinstance(a, np.ndarray):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_an_exported_resume_file_is_bit_identical(resumed, tmp_path):
  _, workdir, _, state, content = resumed
  succeed(convert.main, '--to_pytorch', tmp_path / 'out.pth', '--resume_file', '--steps_per_epoch', 2, '--workdir',
      workdir)
  after = torch_file.read_checkpoint(tmp_path / 'out.pth')
  assert after['epoch'] == content['epoch'] and after['global_step'] == content['global_step']
  for key in ('netG_dict', 'netD_dict'):
    assert_same(after[key], content[key])
  for key in ('optimizerG', 'optimizerD'):
    group, expected = after[key]['param_groups'][0], content[key]['param_groups'][0]
    assert group == {**expected, 'lr': pytest.approx(expected['lr'])}
    for i, entry in content[key]['state'].items():
      assert after[key]['state'][i].pop('step') == 2
      assert_same(after[key]['state'][i], {name: array for name, array in entry.items() if name != 'step'})
  reimported, has_ema = resume_file.state_from_content(after | {'optimizerG': with_steps(after['optimizerG']),
                                                         'optimizerD': with_steps(after['optimizerD'])},
                                                config_lib.from_json((workdir / 'config.json').read_text()))
  assert has_ema
  jax.tree.map(np.testing.assert_array_equal, reimported.replace(rng=0), state.replace(rng=0))


@pytest.mark.parametrize('num_stacks, steps_per_epoch', [(0, 2), (43, 5)])
def test_the_epoch_of_a_resume_file(num_stacks, steps_per_epoch, tmp_path):
  """An epoch of the run's images, or of its fixed stacks of them, without the last partial batch."""
  fields = tiny_config_dict(num_channels=3, stack=3, num_stacks=num_stacks, batch_size=8)
  fields['discriminator']['kind'] = 'small'
  config = config_lib.from_config_dict(fields | {'train': {'num_steps': 31}})
  state = jax.tree.map(
      lambda leaf: jax.random.key(0) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else np.full(leaf.shape, 0 if leaf.ndim else 17, leaf.dtype), train_state.abstract_state(config, None))
  (tmp_path / 'config.json').write_text(config_lib.to_json(config))
  (tmp_path / 'data.json').write_text(json.dumps({'images': 20, 'checksum': 'x'}))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.close()
  printed = succeed(convert.main, '--to_pytorch', tmp_path / 'x.pth', '--resume_file', '--workdir', tmp_path)
  epoch, num_epochs = 17 // steps_per_epoch, -(-31 // steps_per_epoch)
  assert f'at step 17, epoch {epoch} of {num_epochs}.' in printed
  content = torch_file.read_checkpoint(tmp_path / 'x.pth')
  assert (content['epoch'], content['global_step'], content['schedulerG']['T_max']) == (epoch, 17, num_epochs)


def with_steps(optimizer):
  """Step counts as newer versions of PyTorch store them: in a float tensor."""
  return {**optimizer, 'state': {i: {**entry, 'step': np.float32(2)} for i, entry in optimizer['state'].items()}}


def test_resume_files_without_ema_or_with_missing_entries(resumed):
  _, workdir, _, _, content = resumed
  config = config_lib.from_json((workdir / 'config.json').read_text())
  optimizer = content['optimizerG']
  plain = {i: {key: value for key, value in entry.items() if key != 'ema'} for i, entry in optimizer['state'].items()}
  state, has_ema = resume_file.state_from_content(content | {'optimizerG': {**optimizer, 'state': plain}}, config)
  assert not has_ema
  jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.g_params)

  def refused(message, **changes):
    with pytest.raises(InteropError, match=message):
      resume_file.state_from_content(content | changes, config)

  refused("netD_dict is missing; use the original's content.pth", netD_dict=None)
  incomplete = {i: entry for i, entry in optimizer['state'].items() if i != 3}
  refused(r'optimizerG has no complete state of module\.all_modules\.1\.bias',
          optimizerG={**optimizer, 'state': incomplete})
  refused('optimizerG is at step 2 for some parameters and 5 for others', optimizerG={
      **optimizer, 'state': {**optimizer['state'], 3: {**optimizer['state'][3], 'step': 5}}})
  refused('optimizerG has 161 parameters, but netG_dict has 162 tensors', optimizerG={
      **optimizer, 'param_groups': [{**optimizer['param_groups'][0], 'params': [*range(161)]}]})


def test_parameters_unused_by_the_original_have_no_moments():
  """The original's Adam has no state for the unused layers of an unconditional G or for fixed Fourier frequencies."""
  from ddgan_jax.config import Config, DataConfig, DiscriminatorConfig

  for options, unused_name in (({'conditional': False}, 'Dense_0'), ({'embedding_type': 'fourier'}, '.0.W')):
    config = Config(
        data=DataConfig(image_size=8, batch_size=8), generator=dataclasses.replace(SMALL, **options),
        discriminator=DiscriminatorConfig(image_size=8, ngf=2, t_emb_dim=4))
    state = jax.eval_shape(lambda config=config: train_state.create(config))
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, 2, np.float32), state)
    content = resume_file.content_from_state(state, config, epoch=1, num_epochs=2)
    entries = content['optimizerG']['state']
    unused = [i for i, name in enumerate(content['netG_dict']) if unused_name in name]
    assert unused
    for i in unused:
      del entries[i]
    state, _ = resume_file.state_from_content(content, config)
    moments = state.g_opt_state[0].mu
    assert set(np.unique(moments['conv_in']['kernel'])) == {2}
    if 'fourier' in moments:
      assert not moments['fourier'].any() and (np.asarray(state.ema_params['fourier']) == 2).all()


class RunsCode:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_errors_are_one_sentence(official, resumed, tmp_path):
  content = resumed[4]
  whole = (GOLDEN / 'netG_tiny.pth').read_bytes()
  (tmp_path / 'truncated.pth').write_bytes(whole[:len(whole) // 2])
  with zipfile.ZipFile(tmp_path / 'hostile.pth', 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'module.x': RunsCode(str(tmp_path / 'made'))}, 2))
  torch_writer.write_checkpoint(tmp_path / 'netD.pth', content['netD_dict'])
  args = {'num_timesteps': 2, 'ch_mult': [1, 4], 'skip_rescale': False}
  torch_writer.write_checkpoint(tmp_path / 'T2.pth', content | {'args': args})
  cases = [
      (['netG_tiny.pth', '--config.generator.nz=10'],
       ': z_transform.1.weight has shape [24, 12] in the file, but [24, 10] in the configured architecture; use the '
       'config with which the file was trained'),
      (['truncated.pth'], ' is truncated or damaged (File is not a zip file)'),
      (['hostile.pth'], ' refers to posix.mkdir, which a checkpoint of tensors does not need; not loaded, because it '
                        'could run arbitrary code'),
      (['netD.pth'], ': found a discriminator (t_embed.main.0.weight, t_embed.main.0.bias, t_embed.main.2.weight, …); '
                     'use netG_*.pth or the whole content.pth'),
      (['T2.pth'], ': options differ from the config: diffusion.num_timesteps is 2 in the file and 4 in the config; '
                   'generator.ch_mult is (1, 4) in the file and (1, 2) in the config; generator.skip_rescale is False '
                   'in the file and True in the config'),
  ]
  for (file, *flags), message in cases:
    folder = GOLDEN if file == 'netG_tiny.pth' else tmp_path
    config = (resumed if file == 'T2.pth' else official)[0]
    status, out, err = run_command(
        convert.main, '--workdir', tmp_path / 'run', '--from_pytorch', folder / file, '--config', config, *flags)
    assert status == 2 and not out
    assert err.startswith('Error: ') and err.endswith(f'{file}{message}\n') and err.count('\n') == 1, err
  assert not (tmp_path / 'run').exists() and not (tmp_path / 'made').exists()


def test_a_config_that_differs_in_one_field_is_refused():
  """Each field shows in names or shapes; the error names a tensor that does not fit."""
  arrays, options = golden('generator_three_levels.npz')
  config = generator_config(options)
  tensors = golden_tensors(arrays)
  for changes in (
      {'nz': 3}, {'z_emb_dim': 7}, {'n_mlp': 9}, {'num_channels_dae': 4}, {'num_res_blocks': 1}, {'ch_mult': (1, 2)},
      {'attn_resolutions': ()}, {'resblock_type': 'ddpm'}, {'progressive': 'output_skip'},
      {'progressive_input': 'none'}, {'conditional': False}, {'embedding_type': 'fourier'}, {'fir': False}):
    with pytest.raises(InteropError, match=r'^[\w.]+ (is missing in|has shape .* in|is in) the file'):
      pytorch.generator_params(tensors, dataclasses.replace(config, **changes))


def golden_tensors(arrays):
  rows = (str(row).split('|') for row in arrays['param_names'])
  return {name: recipe(name, tuple(json.loads(shape))) for name, shape in rows}


def test_a_tensor_of_the_wrong_shape_is_named():
  arrays, options = golden('generator_default.npz')
  tensors, config = golden_tensors(arrays), generator_config(options)
  tensors['all_modules.0.bias'] = np.zeros(3, np.float32)
  with pytest.raises(InteropError, match=r'all_modules\.0\.bias has shape \[3\] in the file, but \[\d+\] in the conf'):
    pytorch.generator_params(tensors, config)


def test_pytorch_loads_exported_files(resumed, tmp_path):
  """PyTorch loads the file with weights_only, and its resumed Adam takes the same step as optax."""
  torch = pytest.importorskip('torch', reason='PyTorch is not installed; everything else is tested without it')
  import optax

  _, workdir, _, state, _ = resumed
  config = config_lib.from_json((workdir / 'config.json').read_text())
  torch_writer.write_checkpoint(
      tmp_path / 'x.pth', resume_file.content_from_state(state, config, epoch=1, num_epochs=10))
  content = torch.load(tmp_path / 'x.pth', weights_only=True)
  tensors = {name: torch.nn.Parameter(tensor) for name, tensor in content['netG_dict'].items()}
  adam = torch.optim.Adam(tensors.values(), lr=1.0)
  adam.load_state_dict(content['optimizerG'])
  scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 10)
  scheduler.load_state_dict(content['schedulerG'])
  assert scheduler.get_last_lr() == [pytest.approx(1.6e-4)] and scheduler.T_max == 10
  gradients = {name: recipe(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
  for name, tensor in tensors.items():
    tensor.grad = torch.from_numpy(gradients[name])
  adam.step()
  to_params = lambda tensors: pytorch.generator_params(tensors, config.generator)
  optimizer, _ = train_state.make_optimizers(config.optim, config.train.num_steps)
  updates, _ = optimizer.update(to_params(gradients), state.g_opt_state)
  expected = optax.apply_updates(state.g_params, updates)
  found = to_params({name: tensor.detach().numpy() for name, tensor in tensors.items()})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, expected)


def test_a_discriminator_unknown_to_the_original_is_refused():
  with pytest.raises(InteropError, match="discriminator.kind is 'tiny', which the original does not have"):
    list(pytorch.discriminator_rows(DiscriminatorConfig(image_size=8, kind='tiny')))
