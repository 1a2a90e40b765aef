"""The Python API: errors, what a loaded run shows and samples, and the public names of modules."""
# The calls in MISTAKES are strings, so that a failure prints them.
# ruff: noqa: F401

import dataclasses
import importlib
import importlib.resources
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, metrics, models, sampling, train_state
from ddgan_jax.config import ConfigError, GeneratorConfig
from ddgan_jax.editing import interpolation, noise_optimization, replacement
from ddgan_jax.interop import pytorch
from ddgan_jax.metrics import points
from ddgan_jax.reporting import grids
from ddgan_jax.runs import run as run_lib
from tests.support import quick_config_dict
from tests.test_sampling import fake_generator

SCHEDULE = diffusion.make_schedule(4)
KEY = jax.random.key(0)
X = np.zeros((4, 8, 8, 1), np.float32)
T = np.zeros(4, np.int32)
Z = np.zeros((4, 4), np.float32)
BYTES = np.zeros((4, 8, 8, 1), np.uint8)
CONFIG = config_lib.from_config_dict({**quick_config_dict(), 'diffusion': {'num_timesteps': 4}})
GENERATOR = models.MlpGenerator(CONFIG.generator)
DISCRIMINATOR = models.MlpDiscriminator(CONFIG.discriminator)

# A call, and the complete error that it raises.
MISTAKES = {
    'diffusion.make_schedule(2.5)': (TypeError, 'num_timesteps is 2.5; use an integer'),
    'diffusion.make_schedule(0)': (ValueError, 'num_timesteps is 0; use at least 1'),
    'diffusion.make_schedule(4, "cosine")': (ValueError, "kind is 'cosine'; use 'vp' or 'geometric'"),
    'diffusion.make_schedule(4, beta_min=20, beta_max=0.1)': (
        ValueError, 'beta_min is 20; use a value above 0 and below beta_max=0.1'),
    'diffusion.make_schedule(4, "geometric")': (
        ValueError, "beta_max is 20.0; use a value below 1 with kind='geometric' (the last variance)"),
    'diffusion.respace(SCHEDULE, 3)': (ValueError, 'num_timesteps is 3; use a divisor of 4'),
    'diffusion.q_sample(CONFIG, X, T, X)': (
        TypeError, 'schedule is a Config; use a Schedule (from make_schedule)'),
    'diffusion.q_sample(SCHEDULE, BYTES, T, X)': (
        TypeError, 'x_0 is uint8 [4, 8, 8, 1]; use floating point, such as x / 127.5 - 1'),
    'diffusion.q_sample(SCHEDULE, X, 3, X)': (TypeError, 't is 3; use an array of integers'),
    'diffusion.q_sample(SCHEDULE, X, T[:3], X)': (
        ValueError, 't has shape [3]; use [4], one index for each row of x_0'),
    'diffusion.q_sample(SCHEDULE, X, T.astype(np.float32), X)': (
        TypeError, 't is float32 [4]; use integers'),
    'diffusion.q_sample(SCHEDULE, X, T + 5, X)': (ValueError, 't contains 5; use values in 0 … 4 (T)'),
    'diffusion.q_sample_pair(SCHEDULE, X, T + 4, X, X)': (ValueError, 't contains 4; use values in 0 … 3 (T - 1)'),
    'diffusion.q_sample_pair(SCHEDULE, X, T, X, X[..., 0])': (
        ValueError, 'noise_tp1 has shape [4, 8, 8]; use [4, 8, 8, 1], the shape of x_0'),
    'diffusion.sample_posterior(SCHEDULE, X, X, T - 1, X)': (ValueError, 't contains -1; use values in 0 … 3 (T - 1)'),
    'sampling.sample(0, fake_generator, SCHEDULE, X.shape, 4)': (
        TypeError, 'key is 0; use one typed PRNG key, such as jax.random.key(seed)'),
    'sampling.sample(jax.random.PRNGKey(0), fake_generator, SCHEDULE, X.shape, 4)': (
        TypeError, 'key is uint32 [2]; use one typed PRNG key, such as jax.random.key(seed)'),
    'sampling.sample(jax.random.split(KEY), fake_generator, SCHEDULE, X.shape, 4)': (
        TypeError, 'key is key<fry> [2]; use one typed PRNG key, such as jax.random.key(seed)'),
    'sampling.sample(KEY, None, SCHEDULE, X.shape, 4)': (
        TypeError, 'generator_fn is None; use a function of (x_tp1, t, z)'),
    'sampling.sample(KEY, fake_generator, SCHEDULE, (8, 8, 1), 4)': (
        ValueError, 'shape is (8, 8, 1); use (B, H, W, C)'),
    'sampling.sample(KEY, fake_generator, SCHEDULE, X.shape, -1)': (
        ValueError, 'latent_dim is -1; use at least 0'),
    'sampling.sample_given_noise(fake_generator, SCHEDULE, X, Z, X[None])': (
        ValueError, 'z is float32 [4, 4]; use floating point [T, B=4, nz]'),
    'sampling.sample_given_noise(fake_generator, SCHEDULE, X, Z[None], X)': (
        ValueError, 'posterior_noise is float32 [4, 8, 8, 1]; use floating point [T=1, B=4, H=8, W=8, C=1]'),
    'sampling.sample_given_noise(fake_generator, SCHEDULE, X, np.stack([Z] * 5), np.stack([X] * 5))': (
        ValueError, 'z has 5 rows; use 1 … 4 (T)'),
    'sampling.sample_each(2**32, T, fake_generator, SCHEDULE, (8, 8, 1), 4)': (
        ValueError, 'seed is 4294967296; use a value in 0 … 4294967295'),
    'sampling.sample_each(0, 3, fake_generator, SCHEDULE, (8, 8, 1), 4)': (
        TypeError, 'indices is 3; use an array of integers [B]'),
    'sampling.to_uint8(BYTES)': (
        TypeError, 'images is uint8 [4, 8, 8, 1]; use floating point, such as x / 127.5 - 1'),
    'replacement.inpaint(KEY, fake_generator, SCHEDULE, BYTES, X > 0, 4)': (
        TypeError,
        'image is uint8 [4, 8, 8, 1]; use floating point [B, H, W, C], such as x / 127.5 - 1'),
    'replacement.inpaint(KEY, fake_generator, SCHEDULE, X, np.ones((4, 8)), 4)': (
        ValueError, 'mask has shape [4, 8]; use [4, 8, 8, 1], the shape of image'),
    'replacement.inpaint(KEY, fake_generator, SCHEDULE, X, BYTES + 255, 4)': (
        ValueError, 'mask contains 255; use values in 0 … 1'),
    'replacement.image_to_image(KEY, fake_generator, SCHEDULE, X, 4, 5)': (
        ValueError, 'from_level is 5; use a value in 1 … 4 (T)'),
    'replacement.super_resolve(KEY, fake_generator, SCHEDULE, X, 4, 1.5)': (
        TypeError, 'factor is 1.5; use an integer'),
    'noise_optimization.sample_matching(KEY, fake_generator, SCHEDULE, X, X, X.shape, 4)': (
        TypeError, 'measure is float32 [4, 8, 8, 1]; use a function of images'),
    'interpolation.interpolate(KEY, 7, fake_generator, SCHEDULE, (8, 8, 1), 4, 5)': (
        TypeError, 'key_b is 7; use one typed PRNG key, such as jax.random.key(seed)'),
    'interpolation.interpolate_images(KEY, fake_generator, SCHEDULE, X, 4, 1, 5)': (
        ValueError, 'images is float32 [4, 8, 8, 1]; use floating point [images=2, H, W, C]'),
    'GENERATOR.init(KEY, X[:, :4], T, Z)': (
        ValueError, 'x_tp1 is float32 [4, 4, 8, 1]; use floating point [B, H=8, W=8, C=1]'),
    'GENERATOR.init(KEY, X, T, Z[:, :3])': (
        ValueError, 'z is float32 [4, 3]; use floating point [B=4, nz=4]'),
    'GENERATOR.init(KEY, X, T[:1], Z)': (ValueError, 't is int32 [1]; use numbers [B=4]'),
    'DISCRIMINATOR.init(KEY, X, T, X[:2])': (
        ValueError, 'x_tp1 is float32 [2, 8, 8, 1]; use floating point [B=4, H=8, W=8, C=1]'),
    'grids.make_grid(X)': (
        TypeError, 'images is float32 [4, 8, 8, 1]; use uint8 [n, H, W, C], such as sampling.to_uint8(images)'),
    'grids.make_grid(BYTES[0])': (ValueError, 'images is uint8 [8, 8, 1]; use uint8 [n, H, W, C]'),
    'grids.make_grid(np.zeros((4, 8, 8, 4), np.uint8))': (ValueError, 'images has 4 channels; use 1 or 3'),
    'grids.make_grid(BYTES[:0])': (ValueError, 'images is empty; use at least 1'),
    'grids.save_png("x.png", BYTES)': (ValueError, 'image is uint8 [4, 8, 8, 1]; use uint8 [H, W, C]'),
    'pytorch.generator_params("netG.pth", GeneratorConfig())': (
        TypeError, "state_dict is 'netG.pth'; use a dict of arrays (interop.torch_file.read_state_dict reads a "
                   'file)'),
    'pytorch.generator_params({}, CONFIG)': (TypeError, 'config is a Config; use a GeneratorConfig'),
    'pytorch.discriminator_params({}, GeneratorConfig())': (
        TypeError, 'config is a GeneratorConfig; use a DiscriminatorConfig'),
    'metrics.frechet.frechet_distance(Z[0], Z, Z[0], Z[:3])': (
        ValueError, 'the second statistics have a mean of shape (4,) and a covariance of shape (3, 4); use (4,) and '
                    '(4, 4)'),
    'metrics.kid.kernel_distance(X, X)': (
        ValueError, 'real is float32 [4, 8, 8, 1]; use numbers [number, dimension]'),
    'metrics.kid.kernel_distance(Z, Z + np.nan)': (ValueError, 'fake contains NaN or infinity; use finite values'),
    'metrics.inception_score.inception_score(Z[0])': (
        ValueError, 'logits is float32 [4]; use numbers [number, classes]'),
    'metrics.precision_recall.precision_recall(Z, Z, k=0)': (ValueError, 'k is 0; use at least 1'),
    'metrics.inception.features({}, X)': (
        ValueError, 'images is float32 (4, 8, 8, 1); use uint8 (number, height, width, 1 or 3 channels)'),
    'points.count_point_modes(np.zeros((5, 3)))': (
        ValueError, 'points is float64 [5, 3]; use numbers [n, xy=2]'),
    'ddgan_jax.load(3)': (TypeError, 'workdir is 3; use a path'),
    'ddgan_jax.load("runs/x", step="newest")': (TypeError, "step is 'newest'; use an integer"),
    'ddgan_jax.load("runs/x", sharding="cpu")': (TypeError, "sharding is 'cpu'; use a Sharding"),
}


@pytest.mark.parametrize('call', MISTAKES)
def test_errors_are_one_sentence_that_names_the_argument(call):
  kind, sentence = MISTAKES[call]
  with pytest.raises(kind) as error:
    eval(call)
  assert str(error.value) == sentence


def test_checks_need_no_values():
  """Under jit, vmap and grad, shapes and dtypes are checked, and values are not needed."""
  q_sample = lambda x, t: diffusion.q_sample(SCHEDULE, x, t, X[0])
  expected = diffusion.q_sample(SCHEDULE, X, T + 2, X)
  np.testing.assert_allclose(jax.jit(q_sample)(X, T + 2), expected)
  np.testing.assert_allclose(jax.vmap(q_sample)(X, T + 2), expected)
  assert jax.grad(lambda x: q_sample(x, jnp.asarray(T)).sum())(X).shape == X.shape
  with pytest.raises(TypeError, match='x_0 is uint8'):
    jax.jit(q_sample)(BYTES, T)
  with pytest.raises(TypeError, match=r'key is uint32 \[2\]'):
    jax.jit(lambda key: sampling.draw_noise(key, X.shape, 4, 4))(jax.random.PRNGKey(0))


def test_checks_add_nothing_to_a_traced_program(monkeypatch):
  def program():
    return str(jax.make_jaxpr(lambda key: sampling.sample(key, fake_generator, SCHEDULE, X.shape, 4))(KEY))

  checked = program()
  jax.clear_caches()
  for module in (sampling.checks, diffusion.checks):
    for name in ('floats', 'integers', 'values', 'broadcasts', 'shape', 'whole', 'key'):
      monkeypatch.setattr(module, name, lambda *args, **kwargs: None)
  assert program() == checked


def untrained_run(**generator):
  """A run with initial weights."""
  fields = quick_config_dict()
  config = config_lib.from_config_dict({**fields, 'generator': {**fields['generator'], **generator}})
  params = train_state.create(config).ema_params
  return ddgan_jax.Run(*train_state.make_sampler(config, params), config, 7, params, workdir='runs/x')


def test_the_repr_of_a_run_is_one_line():
  text = repr(untrained_run())
  assert text == ("Run(workdir='runs/x', method='ddgan', T=2, image_shape=(8, 8, 1), step=7, "
                  f'parameters={train_state.count_parameters(untrained_run().params):,})')
  assert "label=3)" in repr(dataclasses.replace(untrained_run(num_classes=10), label=3))


def test_run_sample_matches_sampling_and_compiles_once(monkeypatch):
  run = untrained_run()
  traced = []
  sample = sampling.sample
  monkeypatch.setattr(sampling, 'sample', lambda *args: traced.append(args[3]) or sample(*args))
  found = [run.sample(jax.random.key(seed), 5) for seed in (0, 1)]
  run.sample(jax.random.key(0), 3)
  assert traced == [(5, 8, 8, 1), (3, 8, 8, 1)]
  for seed, images in enumerate(found):
    expected = sample(jax.random.key(seed), run.generator_fn, run.schedule, (5, 8, 8, 1), 4)
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(found[0] - found[1]).max() > 0.1


def test_a_conditional_run_samples_any_label_with_one_program(monkeypatch):
  run = untrained_run(num_classes=10)
  traced = []
  sample = sampling.sample
  monkeypatch.setattr(sampling, 'sample', lambda *args: traced.append(args[3]) or sample(*args))
  label = np.array([3, 1, 4])
  each = [run.sample(KEY, 3, label=int(digit))[i] for i, digit in enumerate(label)]
  np.testing.assert_allclose(run.sample(KEY, 3, label), each, rtol=1e-5, atol=1e-6)
  loaded = dataclasses.replace(run, label=3)
  np.testing.assert_array_equal(loaded.sample(KEY, 3), run.sample(KEY, 3, 3))
  assert len(traced) == 3  # one label, three labels, and the other run
  assert np.abs(run.sample(KEY, 3) - loaded.sample(KEY, 3)).max() > 1e-3
  with pytest.raises(ConfigError, match='label is 10; use a label of this run, 0 … 9'):
    run.sample(KEY, 3, label=10)
  with pytest.raises(ValueError, match=r'label has shape \[2\]; use an integer or shape \[3\]'):
    run.sample(KEY, 3, label=label[:2])
  with pytest.raises(TypeError, match='n is 2.0; use an integer'):
    run.sample(KEY, 2.0)


def test_the_fields_of_a_run_cannot_be_set():
  with pytest.raises(dataclasses.FrozenInstanceError):
    untrained_run().step = 8


@pytest.mark.parametrize('name', [
    'ddgan_jax', *(f'ddgan_jax.{name}' for name in (
        'config', 'diffusion', 'editing', 'editing.interpolation', 'editing.noise_optimization', 'editing.replacement',
        'interop', 'interop.pytorch', 'metrics', 'metrics.features.dinov2', 'metrics.features.inception',
        'metrics.features.vgg', 'metrics.frechet', 'metrics.inception_score', 'metrics.kid',
        'metrics.memorization', 'metrics.mind', 'metrics.points', 'metrics.precision_recall', 'models', 'sampling'))])
def test_public_modules_list_only_their_own_names(name):
  """`dir` and `__all__` have no imported module or private name, and every function has a docstring."""
  module = importlib.import_module(name)
  assert set(module.__all__) <= set(dir(module))
  for each in set(dir(module)) - {'__version__'}:
    value = getattr(module, each)
    assert not each.startswith('_')
    owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, '__module__', 'ddgan_jax')
    assert owner.startswith('ddgan_jax') or each == 'GeneratorFn', each
    assert not inspect.isfunction(value) or value.__doc__, each
  own = {each for each, value in vars(module).items()
         if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name and each[0] != '_'}
  assert own <= set(module.__all__)


def test_the_package_is_typed():
  package = importlib.resources.files(ddgan_jax)
  assert (package / 'py.typed').is_file()
  hints = run_lib.Run.__annotations__
  assert hints['schedule'] == 'Schedule' and hints['config'] == 'Config' and hints['step'] == 'int'
