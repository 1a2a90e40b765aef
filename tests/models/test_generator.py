"""The generator against the original's numbers, and combinations of options that crash the original."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models
from ddgan_jax.config import ConfigError, GeneratorConfig, recipes
from ddgan_jax.interop import pytorch, torch_file
from ddgan_jax.models import blocks, norms
from ddgan_jax.parallel import compilation
from ddgan_jax.train_state import count_parameters
from tests.support import GOLDEN, generator_config, golden, nhwc, relative_error, state_dict

CASES = sorted(path.name for path in GOLDEN.glob('generator_*.npz'))


@pytest.mark.parametrize('case', CASES)
def test_golden(case):
  """Output and both gradients, with the original's weights imported; exporting them again is bit-identical."""
  arrays, options = golden(case)
  config = generator_config(options)
  tensors = state_dict(arrays['param_names'])
  params = pytorch.generator_params(tensors, config)
  exported = pytorch.generator_state_dict(params, config)
  assert list(exported) == list(tensors)
  for name, tensor in tensors.items():
    if config.conditional or 'Dense_0' not in name:  # unused in the original
      np.testing.assert_array_equal(exported[name], tensor, err_msg=name)

  generator = models.Generator(config)
  x, t, z = nhwc(arrays['x']), arrays['t'], arrays['z']
  shapes = jax.eval_shape(generator.init, jax.random.key(0), x, t, z)['params']
  assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, params)
  if 'full' in case:
    assert config == config_lib.from_config_dict(recipes.load('cifar10')).generator
    assert count_parameters(params) == 48_432_515

  @compilation.jit
  def run(params, x, z):
    def objective(x, z):
      out = generator.apply({'params': params}, x, t, z)
      return (out * nhwc(arrays['cotangent'])).sum(), out

    (_, out), (grad_x, grad_z) = jax.value_and_grad(objective, (0, 1), has_aux=True)(x, z)
    return out, grad_x, grad_z

  out, grad_x, grad_z = run(params, x, z)
  tolerance = 2e-4 if 'full' in case else 1e-4
  assert out.dtype == jnp.float32
  assert relative_error(out, nhwc(arrays['out'])) < tolerance
  assert relative_error(grad_x, nhwc(arrays['grad_x'])) < tolerance
  assert relative_error(grad_z, arrays['grad_z']) < tolerance


def test_golden_checkpoint():
  """A file written by the original: prefixed names, every tensor used, the same images."""
  arrays, options = golden('netG_tiny_io.npz')
  config = generator_config(options)
  tensors = torch_file.read_state_dict(GOLDEN / 'netG_tiny.pth')
  assert all(name.startswith('module.') for name in tensors)
  params = pytorch.generator_params(tensors, config)
  out = compilation.jit(models.Generator(config).apply)({'params': params}, nhwc(arrays['x']), arrays['t'], arrays['z'])
  assert relative_error(out, nhwc(arrays['out'])) < 1e-4


def test_parameter_count():
  """The published generator for CelebA-HQ; the one for CIFAR-10 is a golden case."""
  config = config_lib.from_config_dict(recipes.load('celebahq_256')).generator
  shapes = jax.eval_shape(
      models.Generator(config).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)), jnp.zeros(1, jnp.int32),
      jnp.zeros((1, config.nz)))
  assert count_parameters(shapes) == 39_726_979


SMALL = GeneratorConfig(
    image_size=8, num_channels=3, num_channels_dae=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), nz=4,
    z_emb_dim=8, n_mlp=1)


def large_weights(config):
  """Random weights, so that no zero initialisation hides an error."""
  x, z = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4))
  shapes = jax.eval_shape(models.Generator(config).init, jax.random.key(0), x, jnp.zeros(1, jnp.int32), z)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / 4, shapes)


def outputs_and_gradients(config, params):
  """Output and parameter gradients of G at every t of T = 4, through `generator_fn`."""
  schedule = diffusion.make_schedule(4)
  rng = np.random.default_rng(1)
  x = rng.standard_normal((4, 8, 8, 3), dtype=np.float32)
  z = rng.standard_normal((4, 4), dtype=np.float32)

  def objective(params):
    out = models.generator_fn(models.Generator(config), params, schedule)(x, np.arange(4), z)
    return (out * x).sum(), out

  (_, out), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
  return out, gradients


CRASHES_THE_ORIGINAL = {
    'progressive residual': {'progressive': 'residual'},
    'progressive residual, no fir': {'progressive': 'residual', 'fir': False},
    'ddpm with conv, fourier': {'resblock_type': 'ddpm', 'embedding_type': 'fourier'},
    'ddpm without fir or conv': {'resblock_type': 'ddpm', 'fir': False, 'resamp_with_conv': False},
    'ddpm and output_skip without fir': {'resblock_type': 'ddpm', 'progressive': 'output_skip', 'fir': False},
}


@pytest.mark.parametrize('options', CRASHES_THE_ORIGINAL.values(), ids=CRASHES_THE_ORIGINAL.keys())
def test_combinations_that_crash_the_original_work(options):
  config = dataclasses.replace(SMALL, attn_resolutions=(), **options)  # attention remains in the middle block
  params = large_weights(config)
  out, gradients = outputs_and_gradients(config, params)
  assert out.shape == (4, 8, 8, 3) and np.isfinite(out).all() and np.abs(out).max() <= 1
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all(), path
    if 'fourier' in str(path):
      assert not leaf.any()  # random features stay fixed
    elif 'key' not in str(path[-2:]):  # softmax cancels the key's bias, equal at all pixels
      assert leaf.any(), f'{path} does not reach the output'
  reimported = pytorch.generator_params(pytorch.generator_state_dict(params, config), config)
  jax.tree.map(np.testing.assert_array_equal, reimported, params)


def test_all_triples_of_options_are_built_or_refused():
  """Options that name a variant: shapes agree with the importer's table, or ConfigError."""
  choices = {
      'resblock_type': ('biggan', 'biggan_oneadagn', 'ddpm'),
      'progressive': ('none', 'output_skip', 'residual'),
      'progressive_input': ('none', 'input_skip', 'residual'),
      'progressive_combine': ('sum', 'cat'),
      'fir': (True, False),
      'resamp_with_conv': (True, False),
  }
  triples, missing = {}, set()
  for values in itertools.product(*choices.values()):
    options = dict(zip(choices, values, strict=True))
    if options['progressive_combine'] == 'cat' and options['progressive_input'] != 'input_skip':
      with pytest.raises(ConfigError, match='progressive_combine'):
        dataclasses.replace(SMALL, **options)
    else:
      triples[values] = set(itertools.combinations(options.items(), 3))
      missing |= triples[values]
  x, z = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4))
  configs = [dataclasses.replace(SMALL, embedding_type='fourier')]
  while missing:  # greedily, the combination that covers most missing triples
    values = max(triples, key=lambda values: len(triples[values] & missing))
    missing -= triples[values]
    configs.append(dataclasses.replace(SMALL, attn_resolutions=(), **dict(zip(choices, values, strict=True))))
  assert 27 <= len(configs) < 40
  for config in configs:
    shapes = jax.eval_shape(models.Generator(config).init, jax.random.key(0), x, jnp.ones(1), z)['params']
    ours = {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert ours == {path for _, path, layout in pytorch.generator_rows(config) if layout != 'unused'}, config


def test_odd_widths_have_groups_that_divide_them():
  """48 + 96 = 144 channels do not divide into 32 groups, which crashes the original."""
  assert norms.num_groups(144) == 24
  assert norms.num_groups(256) == 32
  assert norms.num_groups(8) == 2


def test_normalise_against_flax():
  import flax.linen as nn

  rng = np.random.default_rng(0)
  x = 3 + 2 * rng.standard_normal((2, 5, 5, 16), dtype=np.float32)
  scale, shift = rng.standard_normal((2, 16), dtype=np.float32)
  expected = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False).apply(
      {'params': {'scale': scale, 'bias': shift}}, x)
  np.testing.assert_allclose(norms.normalise(x, scale, shift), expected, atol=1e-5)


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize('silu', ['_silu_stored', '_silu_recomputed'])
def test_norm_of_parts_against_flax(monkeypatch, silu, dtype, tolerance):
  """Both platforms' variants: values, gradients and forward mode; the border of the parts divides a group."""
  import flax.linen as nn

  monkeypatch.setattr(norms, '_silu_of_affine', getattr(norms, silu))
  normalise_silu = norms.normalise_silu.__wrapped__  # not the cached trace of the other variant
  rng = np.random.default_rng(0)
  parts = tuple(jnp.asarray(0.5 + rng.standard_normal((2, 5, 5, c), dtype=np.float32), dtype) for c in (10, 6))
  scale, shift, added = (jnp.asarray(rng.standard_normal((2, 16), dtype=np.float32)) for _ in range(3))
  weight = jnp.asarray(rng.standard_normal((2, 5, 5, 16), dtype=np.float32))

  def plain(parts, scale, shift, added):
    x = jnp.concatenate(parts, axis=-1).astype(jnp.float32) + added[:, None, None]
    norm = nn.GroupNorm(4, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False).apply({}, x)
    return nn.silu(scale[:, None, None] * norm + shift[:, None, None]).astype(dtype)

  def results(norm):
    primals = parts, scale, shift, added
    gradient = jax.grad(lambda *args: (norm(*args).astype(jnp.float32) * weight).sum(), (0, 1, 2, 3))
    return norm(*primals), gradient(*primals), jax.jvp(norm, primals, jax.tree.map(jnp.cos, primals))

  for expected, found in zip(jax.tree.leaves(results(plain)), jax.tree.leaves(results(normalise_silu)), strict=True):
    assert found.dtype == expected.dtype
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=tolerance * np.abs(expected).max())


def test_the_platform_selects_the_norm():
  x, scale = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.bfloat16), jax.ShapeDtypeStruct((2, 16), jnp.float32)
  gradient = jax.jit(jax.grad(lambda x, *args: norms.normalise_silu((x,), *args).astype(jnp.float32).sum()))
  barriers = {platform: 'optimization_barrier' in gradient.trace(x, scale, scale).lower(
      lowering_platforms=(platform,)).as_text() for platform in ('cpu', 'tpu', 'cuda')}
  assert barriers == {'cpu': False, 'tpu': False, 'cuda': True}


def test_group_statistics_are_copied_to_channels_exactly():
  """On a CPU by a product with ones and zeros, which must not round."""
  per_group = np.random.default_rng(0).standard_normal((3, 6), dtype=np.float32) * np.float32(1e3)
  np.testing.assert_array_equal(jax.jit(lambda x: norms._to_channels(x, 24))(per_group), per_group.repeat(4, axis=1))
  on_tpu = jax.jit(lambda x: norms._to_channels(x, 24)).trace(per_group).lower(lowering_platforms=('tpu',))
  assert 'dot_general' not in on_tpu.as_text()


def test_dropout_acts_only_while_training():
  config = dataclasses.replace(SMALL, ch_mult=(1,), attn_resolutions=(), dropout=0.5)
  generator = models.Generator(config)
  rng = np.random.default_rng(0)
  x, t, z = rng.standard_normal((2, 8, 8, 3)), np.zeros(2, np.int32), rng.standard_normal((2, 4))
  shapes = jax.eval_shape(generator.init, jax.random.key(0), x, t, z)
  variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / 4, shapes)

  @functools.partial(jax.jit, static_argnums=1)
  def run(seed, deterministic):
    return generator.apply(variables, x, t, z, deterministic=deterministic, rngs={'dropout': jax.random.key(seed)})

  np.testing.assert_array_equal(run(0, True), run(1, True))
  assert np.abs(run(0, False) - run(1, False)).max() > 1e-3


def test_dropout_does_not_depend_on_how_the_batch_is_split():
  x, row_indices = np.ones((4, 8, 8, 2), np.float32), np.arange(4)
  whole = blocks.dropout(jax.random.key(0), x, 0.25, row_indices)
  np.testing.assert_array_equal(blocks.dropout(jax.random.key(0), x[2:], 0.25, row_indices[2:]), whole[2:])
  assert set(np.unique(whole)) == {np.float32(0), np.float32(4 / 3)}
  assert 0.15 < np.mean(whole == 0) < 0.35 and np.abs(whole[0] - whole[1]).max() > 0


def test_bfloat16_stays_close():
  arrays, options = golden('generator_default.npz')
  config = generator_config(options)
  params = pytorch.generator_params(state_dict(arrays['param_names']), config)
  out = jax.jit(models.Generator(config, jnp.bfloat16).apply)(
      {'params': params}, nhwc(arrays['x']), arrays['t'], arrays['z'])
  expected = nhwc(arrays['out'])
  assert out.dtype == jnp.float32
  assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < 0.03


def test_importer_names_the_tensor_that_does_not_fit():
  tensors = pytorch.generator_state_dict(large_weights(SMALL), SMALL)
  with pytest.raises(pytorch.InteropError, match='all_modules.99.weight is in the file, but not in the configured'):
    pytorch.generator_params({**tensors, 'all_modules.99.weight': np.zeros(3)}, SMALL)
  del tensors['z_transform.1.weight']
  with pytest.raises(pytorch.InteropError, match='z_transform.1.weight is missing in the file'):
    pytorch.generator_params(tensors, SMALL)
