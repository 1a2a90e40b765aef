"""Other methods and predictions with the same step and sampler: closed forms, and a short training of each."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models, objectives, sampling, train_state, train_step
from ddgan_jax.config import ConfigError
from ddgan_jax.interop import pytorch
from ddgan_jax.parallel import sharding
from tests.support import tiny_config_dict

BATCH = 16  # 2 devices x 2 microbatches x groups of 4 rows


def toy_config(method='ddgan', num_timesteps=4, accumulation=1, **generator):
  return config_lib.from_config_dict({
      'method': method,
      'data': {'name': 'gaussians25', 'image_size': 1, 'num_channels': 2, 'batch_size': BATCH},
      'diffusion': {'num_timesteps': num_timesteps},
      'generator': {'kind': 'mlp', 'num_channels_dae': 8, 'nz': 3, **generator},
      'discriminator': {'kind': 'mlp', 'ngf': 8, 't_emb_dim': 8},
      'optim': {'r1_gamma': 0.1, 'lazy_reg': 1, 'lr_g': 1e-3, 'lr_d': 1e-3},
      'parallel': {'accumulation': accumulation},
      'train': {'num_samples': 4}})


def random_params(shapes, scale=0.3):
  """Random parameters, because `init` takes seconds to compile."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: scale * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def random_state(config):
  shapes = train_state.abstract_state(config, None)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (shapes.g_opt_state, shapes.d_opt_state))
  g_params, d_params = random_params(shapes.g_params), random_params(shapes.d_params)
  state = train_state.TrainState(np.int32(0), jax.random.key(0), g_params, d_params, g_params, *zeros)
  if config.optim.ema_profiles:
    return train_state.ProfiledState(**vars(state), ema_profiles=(g_params, g_params))
  return state


@functools.cache
def cached_schedule(num_timesteps):
  return diffusion.make_schedule(num_timesteps)


def normal(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


D_METRICS = {'loss_d', 'loss_d_real', 'loss_d_fake', 'logits_real', 'logits_fake', 'grad_norm_d', 'lr_d', 'r1_penalty'}
G_METRICS = {'loss_g', 'grad_norm_g', 'lr_g'}

METHODS = {
    'gaussian': {'method': 'gaussian', 'num_timesteps': 1000, 'prediction': 'noise'},
    'diffusion as augmentation': {'method': 'augmented_gan'},
    'direct denoising': {'prediction': 'x_t'},
    'noise, no latent': {'prediction': 'noise', 'nz': 0, 'accumulation': 2},
}


@pytest.mark.parametrize('fields', METHODS.values(), ids=METHODS.keys())
def test_each_method_trains_and_samples(fields):
  """Three steps of a run's own program on two devices; then samples of its EMA."""
  config = toy_config(**fields)
  mesh = sharding.make_mesh(jax.devices()[:2])
  before = random_state(config)
  state = jax.device_put(
      before, sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh))))
  step = train_step.make_step_fn(config, mesh, with_r1=config.method != 'gaussian')
  for seed in range(3):
    x_0 = np.tanh(*normal((BATCH, 1, 1, 2), seed=seed))
    state, metrics = step(state, jax.device_put(x_0, sharding.batch_sharding(mesh)))
    assert all(np.isfinite(value) for value in metrics.values())
  assert set(metrics) == (G_METRICS if config.method == 'gaussian' else G_METRICS | D_METRICS)
  for name in ('g_params', 'ema_params') + (() if config.method == 'gaussian' else ('d_params',)):
    for old, new in zip(*(jax.tree.leaves(getattr(s, name)) for s in (before, state)), strict=True):
      assert np.abs(np.asarray(new) - old).max() > 0, name
  assert (state.d_params == {}) == (config.method == 'gaussian')
  generator_fn, schedule = train_state.make_sampler(config, state.ema_params)
  images = jax.jit(lambda key: sampling.sample(key, generator_fn, schedule, (8, 1, 1, 2), config.generator.nz))(
      jax.random.key(0))
  assert np.isfinite(images).all() and np.ptp(np.asarray(images), axis=0).min() > 1e-4
  assert schedule.num_timesteps == (1 if config.method == 'augmented_gan' else config.diffusion.num_timesteps)


def mlp_in_numpy(params, x_tp1, t, z, tanh):
  """Three hidden layers of LeakyReLU(0.2) on [x, sinusoids of x with periods 8 to 1, z, sinusoids of t]."""
  x = x_tp1.reshape(len(t), -1).astype(np.float64)
  waves = [wave(2 * np.pi * x / period) for wave in (np.sin, np.cos) for period in (8, 4, 2, 1)]
  angles = t[:, None] * 10000.0 ** (-np.arange(16) / 15)
  h = np.concatenate([x, *waves, z, np.sin(angles), np.cos(angles)], axis=1)
  for name in ('dense_0', 'dense_1', 'dense_2'):
    h = h @ params[name]['kernel'].astype(np.float64) + params[name]['bias']
    h = np.maximum(h, 0.2 * h)
  h = h @ params['dense_out']['kernel'].astype(np.float64) + params['dense_out']['bias']
  return (np.tanh(h) if tanh else h).reshape(x_tp1.shape)


@pytest.mark.parametrize('prediction', ['x_0', 'noise'])
def test_gaussian_loss_is_the_l2_distance(prediction):
  """Against NumPy, with the same parameters and draws; a latent input of G is zero."""
  config = toy_config('gaussian', 1000, prediction=prediction)
  params = random_state(config).g_params
  draws = train_step.make_draws(jax.random.key(1), (BATCH, 1, 1, 2), 1000, 3)
  x_0 = np.tanh(*normal((BATCH, 1, 1, 2)))
  setup = train_step.make_setup(config)
  assert setup.model.discriminator is None
  rows = objectives.Rows(x_0, draws.g, np.arange(BATCH), None, np.int32(0))
  loss, _ = jax.jit(lambda params: setup.objective.generator_loss(setup.model, params, {}, rows))(params)
  s = 1e-3 + (1 - 1e-3) * (np.asarray(draws.g.t)[:, None, None, None] + 1) / 1000
  # The variance is 1 - exp(-s² (20 - 0.1) / 2 - 0.1 s), relative to that at the start of the grid, s = 1e-3.
  alpha_bar = np.exp(-(s**2 - 1e-6) * 19.9 / 2 - 0.1 * (s - 1e-3))
  noise = np.asarray(draws.g.noise_tp1, np.float64)
  x_tp1 = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * noise
  found = mlp_in_numpy(
      params, x_tp1, np.asarray(draws.g.t, float), np.zeros((BATCH, 3)), tanh=prediction == 'x_0')
  expected = np.mean((found - (noise if prediction == 'noise' else x_0)) ** 2)
  assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('num_timesteps', [1, 4, 1000])
def test_the_true_noise_recovers_the_image(num_timesteps):
  schedule = cached_schedule(num_timesteps)
  t = np.linspace(0, num_timesteps - 1, 16).astype(np.int32)
  x_0, noise = normal((16, 4, 4, 1), (16, 4, 4, 1))
  x_tp1 = diffusion.q_sample(schedule, x_0, t + 1, noise)
  # x_T contains 0.7% of x_0, so the inversion amplifies rounding errors 150 times.
  np.testing.assert_allclose(diffusion.x_0_from_noise(schedule, x_tp1, t, noise), x_0, atol=2e-4)


def test_generator_fn_inverts_noise_predictions():
  """generator_fn converts the network's noise to x_0 at the level of each row; the network itself is in NumPy."""
  config = toy_config(prediction='noise')
  params = random_state(config).g_params
  generator, _ = train_state.make_networks(config)
  schedule = cached_schedule(4)
  x_tp1, z = normal((4, 1, 1, 2), (4, 3))
  t = np.arange(4, dtype=np.int32)
  noise = mlp_in_numpy(params, x_tp1, t.astype(float), z, tanh=False)
  level = (slice(None), None, None, None)
  expected = (x_tp1 - schedule.sigma_bar[t + 1][level] * noise) / schedule.sqrt_alpha_bar[t + 1][level]
  found = models.generator_fn(generator, params, schedule)(x_tp1, t, z)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_direct_denoising_never_uses_the_posterior():
  """A sample is G applied T times, bit for bit; neither x_{t+1} nor the posterior's noise enters it."""
  schedule = diffusion.identity_posterior(cached_schedule(4))
  x_T, z, noise = normal((2, 4, 4, 1), (4, 2, 5), (4, 2, 4, 4, 1))

  def halve_and_shift(x_tp1, t, z):
    return 0.5 * x_tp1 + t[:, None, None, None] + z[:, :1, None, None]

  x = x_T
  for row, t in enumerate((3, 2, 1, 0)):
    x = np.float32(0.5) * x + np.float32(t) + z[row][:, :1, None, None]
  found = sampling.sample_given_noise(halve_and_shift, schedule, x_T, z, noise)
  np.testing.assert_array_equal(found, x)
  np.testing.assert_array_equal(sampling.sample_given_noise(halve_and_shift, schedule, x_T, z, 1e6 * noise), x)
  x_t, x_tp1 = diffusion.q_sample_pair(schedule, x_T, np.array([1, 2]), noise[0], noise[1])
  for found, expected in zip((x_t, x_tp1), diffusion.q_sample_pair(
      cached_schedule(4), x_T, np.array([1, 2]), noise[0], noise[1]), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_only_x_0_predictions_end_in_tanh():
  for prediction, bound in (('x_0', True), ('noise', False), ('x_t', False)):
    config = toy_config(prediction=prediction)
    params = random_params(train_state.abstract_state(config, None).g_params, scale=3)
    generator, _ = train_state.make_networks(config)
    out = generator.apply({'params': params}, *normal((8, 1, 1, 2)), jnp.zeros(8, jnp.int32), *normal((8, 3)))
    assert (float(np.abs(out).max()) <= 1) == bound, prediction


def test_respaced_schedule():
  """Every 250th level of the 1000-step schedule is the 4-step schedule, and t_long names the same x_{t+1}."""
  long = cached_schedule(1000)
  short, t_long = diffusion.respace(long, 4)
  np.testing.assert_array_equal(t_long, [249, 499, 749, 999])
  for field in dataclasses.fields(short):
    np.testing.assert_allclose(
        getattr(short, field.name), getattr(cached_schedule(4), field.name), rtol=2e-4, atol=1e-6, err_msg=field.name)
  np.testing.assert_allclose(short.sigma_bar[np.arange(4) + 1], long.sigma_bar[t_long + 1], rtol=1e-5)
  np.testing.assert_array_equal(diffusion.respace(long, 1)[1], [999])
  with pytest.raises(ValueError, match='num_timesteps is 3; use a divisor of 1000'):
    diffusion.respace(long, 3)


def test_a_perfect_predictor_needs_few_steps():
  """A predictor of x_0 returns it; a predictor of the noise does too, if it gets the right long level."""
  long = cached_schedule(1000)
  short, t_long = diffusion.respace(long, 4)
  x_0, = normal((3, 4, 4, 1))
  x_0 = np.tanh(x_0)
  draw = functools.partial(sampling.sample, jax.random.key(0), schedule=short, shape=(3, 4, 4, 1), latent_dim=0)
  np.testing.assert_allclose(draw(generator_fn=lambda x_tp1, t, z: jnp.asarray(x_0)), x_0, atol=1e-6)

  def from_true_noise(x_tp1, t, z):
    level = jnp.asarray(t_long)[t]
    at = lambda table: jnp.asarray(table)[level + 1][:, None, None, None]
    noise = (x_tp1 - at(long.sqrt_alpha_bar) * x_0) / at(long.sigma_bar)
    return diffusion.x_0_from_noise(long, x_tp1, level, noise)

  np.testing.assert_allclose(draw(generator_fn=from_true_noise), x_0, atol=1e-3)


def test_gaussian_sampler_in_four_steps():
  """make_sampler calls G at the long levels, with a zero latent, and clips."""
  config = toy_config('gaussian', 1000, prediction='noise')
  params = random_state(config).g_params
  generator, _ = train_state.make_networks(config)
  generator_fn, schedule = train_state.make_sampler(config, params, 4)
  assert schedule.num_timesteps == 4
  x_tp1, z = normal((4, 1, 1, 2), (4, 3))
  long = models.generator_fn(generator, params, cached_schedule(1000))
  bound = config.data.bound
  expected = np.clip(long(x_tp1, np.array([249, 499, 749, 999]), np.zeros((4, 3), np.float32)), -bound, bound)
  np.testing.assert_allclose(generator_fn(x_tp1, np.arange(4), z), expected, rtol=1e-5)
  assert np.abs(expected).max() == bound and np.abs(expected).min() < bound
  with pytest.raises(ConfigError, match='num_timesteps is 7; use a divisor of 1000'):
    train_state.make_sampler(config, params, 7)
  for other, natural in (('ddgan', 4), ('augmented_gan', 1)):
    with pytest.raises(ConfigError, match=f"num_timesteps is 2; use {natural}, .* method='{other}'"):
      train_state.make_sampler(toy_config(other), params, 2)


def test_diffusion_as_augmentation_diffuses_generated_images():
  """D gets G(noise) and x_0, both at level t, and zeros for x_{t+1}; G is called at the last level."""
  schedule, t = cached_schedule(4), np.array([0, 1, 3], np.int32)
  x_0, noise_t, noise_tp1, posterior_noise, z = normal(*[(3, 2, 2, 1)] * 4, (3, 2))
  rows = objectives.Rows(
      x_0, objectives.UpdateDraws(t, noise_t, noise_tp1, z, posterior_noise, None), np.arange(3), None, np.int32(0))
  d_inputs = []

  def generate(params, x_tp1, t, z):
    np.testing.assert_array_equal(t, [3, 3, 3])
    return 0.1 * x_tp1 + z[:, :1, None, None]

  def discriminator_fn(params, *args):
    d_inputs.append(args)
    return jnp.zeros(3)

  generator = types.SimpleNamespace(
      apply=generate, config=config_lib.GeneratorConfig(kind='mlp'))
  model = objectives.Model(generator, types.SimpleNamespace(apply=discriminator_fn), schedule)
  with jax.disable_jit():  # so that the arguments are concrete
    loss, _ = objectives.AugmentedGan().generator_loss(model, None, None, rows)
  assert float(loss) == pytest.approx(np.log(2))
  (x_t_fake, levels, x_tp1), = d_inputs
  np.testing.assert_array_equal(x_tp1, np.zeros_like(x_0))
  np.testing.assert_array_equal(levels, t)
  fake = np.float32(0.1) * noise_tp1 + z[:, :1, None, None]
  expected = (schedule.sqrt_alpha_bar[t][:, None, None, None] * fake
              + schedule.sigma_bar[t][:, None, None, None] * posterior_noise)
  np.testing.assert_allclose(x_t_fake, expected, atol=1e-6)
  np.testing.assert_allclose(x_t_fake[0], fake[0], atol=1e-6)  # level 0 is the image itself


@pytest.mark.parametrize('fields', [{'nz': 0}, {'kind': 'mlp'}], ids=str)
def test_generators_unknown_to_the_original_are_refused(fields):
  with pytest.raises(pytorch.InteropError, match=f'generator.{"".join(fields)} is .*original does not'):
    pytorch.generator_params({}, config_lib.GeneratorConfig(**fields))


@pytest.mark.parametrize('resblock_type', ['biggan', 'ddpm'])
def test_a_u_net_without_a_latent(resblock_type):
  """nz=0: no mapping network, and ordinary norms with their parameters; samples differ only by x_T."""
  fields = tiny_config_dict()
  fields['generator'] |= {'nz': 0, 'resblock_type': resblock_type}
  config = config_lib.from_config_dict(fields)
  shapes = train_state.abstract_state(config, None).g_params
  names = {'/'.join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
  assert not [name for name in names if 'latent' in name or 'style' in name]
  assert 'middle_block_0/norm_0/scale' in names and 'middle_block_0/norm_1/bias' in names
  params = random_params(shapes)
  generator_fn, schedule = train_state.make_sampler(config, params)
  images = np.asarray(jax.jit(
      lambda key: sampling.sample(key, generator_fn, schedule, (2, 8, 8, 1), 0))(jax.random.key(0)))
  assert np.isfinite(images).all() and np.abs(images[0] - images[1]).max() > 0.01
