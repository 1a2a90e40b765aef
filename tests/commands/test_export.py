"""Exports for other programs: StableHLO, safetensors, and the functions of `ddgan_jax.load`."""

import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import export, sampling, train_state
from ddgan_jax.cli import image_output
from ddgan_jax.config import UserError, recipes
from ddgan_jax.interop import stablehlo
from ddgan_jax.parallel import compilation
from ddgan_jax.runs.checkpoints import CheckpointError, Checkpoints
from tests.config.test_config import FOLDER_SIZES, RECIPES
from tests.objectives.test_ablations import random_params
from tests.support import ROOT, command_environment, tiny_config_dict
from tests.support.commands import run_command, succeed

ENVIRONMENT = command_environment()
WITHOUT = '''
import runpy, sys
for name in ('flax', 'ddgan_jax', 'optax', 'orbax', 'ml_collections', 'tensorflow', 'safetensors'):
  sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run with FIR filters and large weights; initial weights would give grey images."""
  folder = tmp_path_factory.mktemp('export')
  raw = tiny_config_dict()
  raw['generator'].update(ch_mult=(1, 2))
  config = config_lib.from_config_dict(raw)
  rng = np.random.default_rng(0)

  def fill(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    return jnp.asarray(rng.standard_normal(leaf.shape) / 4 if leaf.ndim else 7, leaf.dtype)

  state = jax.tree.map(fill, train_state.abstract_state(config, None))
  (folder / 'config.json').write_text(config_lib.to_json(config))
  checkpoints = Checkpoints(folder)
  checkpoints.save(state)
  checkpoints.close()
  return folder


@pytest.fixture(scope='module')
def run(workdir):
  return ddgan_jax.load(workdir)


@pytest.fixture(scope='module')
def files(workdir):
  """The two files that the command writes."""
  output = succeed(export.main, '--workdir', workdir, '--out', workdir / 'x.stablehlo', '--safetensors',
                 workdir / 'x.safetensors')
  assert 'the sampler of step 7' in output and 'for cpu, cuda, tpu' in output
  return workdir / 'x.stablehlo', workdir / 'x.safetensors'


def test_the_exported_sampler_matches_the_library_without_flax(run, files, tmp_path, monkeypatch):
  """Bit for bit with JAX's default compiler options; with a partial last batch and a seed beyond int32."""
  seed = 3_000_000_000
  subprocess.run(
      [sys.executable, '-c', WITHOUT, ROOT / 'launch' / 'sample_exported.py', files[0], 'x.npz', '--num', '5',
       '--seed', str(seed), '--batch_size', '3'],
      cwd=tmp_path, env={**ENVIRONMENT, 'PYTHONPATH': ''}, check=True, timeout=600)
  found = np.load(tmp_path / 'x.npz')['images']
  monkeypatch.setattr(compilation, 'compiler_options', lambda platform: {})
  expected = image_output.generate(run, 5, seed, batch_size=3)
  assert found.dtype == np.uint8 and found.shape == (5, 8, 8, 1) and expected.std() > 10
  np.testing.assert_array_equal(found, expected)


def test_the_exported_sampler_supports_all_platforms_and_batch_sizes(files):
  exported = jax.export.deserialize(files[0].read_bytes())
  assert set(exported.platforms) == {'cpu', 'cuda', 'tpu'}
  assert [str(aval) for aval in exported.in_avals] == ['uint32[]', 'int32[batch]']
  assert [str(aval) for aval in exported.out_avals] == ['uint8[batch,8,8,1]']
  # FIR filters are weighted sums, or on TPUs a depthwise convolution, chosen at compile time.
  assert 'stablehlo.case' in exported.mlir_module()


def all_recipes():
  """`name`, or `name:size` for a recipe of several sizes, two of which share each network."""
  for name in RECIPES:
    yield from [f'{name}:{size}' for size in FOLDER_SIZES[::2]] if name == 'folder' else [name]


def recipe_run(recipe, label=None, num_timesteps=None, **fields):
  """A run of a recipe, with a narrow G of at most two levels and random parameters."""
  config_dict = recipes.load(recipe)
  config_dict.data.path = config_dict.data.path or 'photos' * (config_dict.data.name in ('folder', 'npz'))
  config_dict.data.condition_path = 'sketches' if config_dict.data.condition == 'pairs' else ''
  generator = config_dict.generator
  generator.update(
      num_channels_dae=8, ch_mult=generator.ch_mult[:2], num_res_blocks=1, nz=4, z_emb_dim=8, n_mlp=1,
      attn_resolutions=(config_dict.data.image_size // 2,) if generator.attn_resolutions else ())
  config_dict.update_from_flattened_dict(fields)
  config = config_lib.from_config_dict(config_dict)
  module, _ = train_state.make_networks(config)
  x, z = jnp.zeros((1, *config.image_shape)), jnp.zeros((1, config.generator.nz))
  params = random_params(jax.eval_shape(module.init, jax.random.key(0), x, jnp.ones(1, jnp.int32), z)['params'])
  return ddgan_jax.Run(*train_state.make_sampler(config, params, num_timesteps, label), config, 0, params)


@pytest.mark.parametrize('recipe', list(all_recipes()))
def test_every_recipe_can_be_exported(recipe):
  run = recipe_run(recipe)
  (images,) = stablehlo.export_sampler(run, ['cpu']).out_avals
  assert str(images.shape[0]) == 'batch' and images.shape[1:] == run.config.image_shape


@pytest.mark.parametrize('recipe, fields', [
    ('digits_conditional', {'label': 3, 'generator.ch_mult': (1,), 'generator.attn_resolutions': ()}),
    ('gaussians25', {}),
    ('stacked_digits', {'label': 314, 'num_timesteps': 4, 'method': 'gaussian', 'diffusion.num_timesteps': 20,
                        'generator.kind': 'mlp', 'generator.num_classes': 10}),
], ids=['a label', 'points', 'a label of three digits in fewer steps'])
def test_labels_and_points_are_exported_for_any_batch_size(recipe, fields):
  run = recipe_run(recipe, **fields)
  sample = jax.jit(jax.export.deserialize(stablehlo.export_sampler(run, ['cpu']).serialize()).call)
  expected = image_output.generate(run, 5, seed=7)
  assert expected.std() > 0.1
  for indices in ([0, 1, 2, 3, 4], [4, 2]):
    found = np.asarray(sample(np.uint32(7), np.array(indices, np.int32)))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype(float), expected[indices], atol=1 if found.dtype == np.uint8 else 1e-5)


def test_an_exported_sampler_of_many_steps_draws_noise_in_parts(monkeypatch):
  """The images match a program that draws all noise at once; a batch that fits into one part needs no loop."""
  run = recipe_run('digits', **{'method': 'gaussian', 'diffusion.num_timesteps': 30, 'generator.kind': 'mlp'})

  def exported(max_images):
    monkeypatch.setattr(sampling, '_MAX_NOISE', max_images * 30 * (8 * 8 + 4))
    return jax.jit(jax.export.deserialize(stablehlo.export_sampler(run, ['cpu']).serialize()).call)

  def compiled(sample, indices):
    program = sample.lower(np.uint32(7), indices).compile()
    shapes = re.findall(r'f32\[([\d,]+)\]', program.as_text())
    largest = max(np.prod([int(n) for n in shape.split(',')]) for shape in shapes)
    return np.asarray(program(np.uint32(7), indices)).astype(int), largest, program.as_text().count(' while(')

  at_once, map_in_batches = exported(1_000_000), exported(3)
  indices = np.array([5, 0, 3, 8, 1, 2, 9], np.int32)
  expected, largest, _ = compiled(at_once, indices)
  assert largest >= 7 * 30 * 8 * 8 and expected.std() > 10
  found, largest, _ = compiled(map_in_batches, indices)
  assert largest <= 3 * 30 * 8 * 8
  assert np.abs(found - expected).max() <= 1
  assert compiled(map_in_batches, indices[:3])[2] == compiled(at_once, indices[:3])[2]


def test_safetensors_hold_the_parameters_and_the_config(run, files):
  tensors = safetensors.numpy.load_file(files[1])
  np.testing.assert_array_equal(
      tensors['down_0_block_0.conv_0.kernel'], run.params['down_0_block_0']['conv_0']['kernel'])
  assert len(tensors) == len(jax.tree.leaves(run.params))
  loaded = ddgan_jax.load(files[1])
  jax.tree.map(np.testing.assert_array_equal, loaded.params, run.params)
  assert loaded.config == run.config and loaded.step == run.step == 7
  x, z = np.ones((1, 8, 8, 1), np.float32), np.ones((1, 4), np.float32)
  np.testing.assert_array_equal(
      jax.jit(loaded.generator_fn)(x, np.zeros(1, np.int32), z), jax.jit(run.generator_fn)(x, np.zeros(1, np.int32), z))
  with pytest.raises(CheckpointError, match='step is 6; use 7, the only step in'):
    ddgan_jax.load(files[1], step=6)


def test_invalid_safetensors_are_refused(files, tmp_path):
  path = tmp_path / 'x.safetensors'
  with pytest.raises(UserError, match='x.safetensors cannot be read as safetensors .*o such file'):
    ddgan_jax.load(path)
  content = files[1].read_bytes()
  path.write_bytes(content[:-4])
  with pytest.raises(UserError, match='x.safetensors cannot be read as safetensors'):
    ddgan_jax.load(path)
  with safetensors.safe_open(files[1], 'numpy') as file:
    metadata = file.metadata()
  tensors = safetensors.numpy.load(content)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError, match='has no config of ddgan_jax in its metadata'):
    ddgan_jax.load(path)
  tensors['conv_in.bias'] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(tensors, path, metadata)
  with pytest.raises(UserError, match=r'conv_in\.bias is float32\[3\], but its config needs float32\[8\]'):
    ddgan_jax.load(path)


@pytest.mark.parametrize('flags, message', [
    ([], '--out, --safetensors, --folder and --hub: use at least one of them'),
    (['--out', 'x', '--platforms', 'cpu,gpu'], '--platforms is cpu,gpu; use some of cpu,cuda,tpu'),
])
def test_errors_are_one_sentence(workdir, flags, message):
  result = run_command(export.main, '--workdir', workdir, *flags)
  assert result == (2, '', f'Error: {message}\n')


def test_sampling_works_under_vmap_and_jit(run):
  """A jitted vmap over keys equals one key after the other."""
  keys = jax.random.split(jax.random.key(0), 3)
  sample = jax.jit(lambda key: sampling.sample(key, run.generator_fn, run.schedule, (2, 8, 8, 1), 4))
  together = jax.jit(jax.vmap(sample))(keys)
  assert together.shape == (3, 2, 8, 8, 1) and float(together.std()) > 0.1
  for i in range(3):
    np.testing.assert_allclose(together[i], sample(keys[i]), atol=1e-5)


def test_samples_have_gradients():
  """The derivative along a direction of z, x_T and the noise matches finite differences, through all steps."""
  run = recipe_run('digits', **{'generator.kind': 'mlp', 'diffusion.num_timesteps': 2})
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
  noise, direction = [(normal(1, 8, 8, 1), normal(2, 1, 4), normal(2, 1, 8, 8, 1)) for _ in range(2)]
  weights = normal(1, 8, 8, 1)

  @jax.jit
  def score(noise):
    return (sampling.sample_given_noise(run.generator_fn, run.schedule, *noise) * weights).sum()

  gradient = jax.jit(jax.grad(score))(noise)
  assert all(np.abs(leaf).max() > 0 for leaf in gradient[:2])
  derivative = sum(float((a * b).sum()) for a, b in zip(gradient, direction))
  step = 1e-3
  ahead, behind = (
      score(tuple(a + sign * step * b for a, b in zip(noise, direction))) for sign in (1, -1))
  assert derivative == pytest.approx(float(ahead - behind) / (2 * step), rel=0.02)
