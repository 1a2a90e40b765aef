"""The training step: golden steps, cost, draws and schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import objectives, train_state, train_step
from ddgan_jax.benchmark import flops
from ddgan_jax.config import Config, ConfigError, DataConfig, OptimConfig
from ddgan_jax.interop import pytorch
from ddgan_jax.objectives import penalties
from ddgan_jax.parallel import sharding
from tests.support import tiny_config_dict
from tests.support.golden_steps import golden_steps


def test_golden_steps():
  """Four steps, two with R1: every loss, and then G, D and the EMA."""
  golden = golden_steps()
  state = golden.initial_state()
  for i in range(golden.options['steps']):
    state, metrics = golden.step(state, i)
    golden.check_losses(metrics, i)
    assert ('r1_penalty' in metrics) == (i % 2 == 0)

  arrays, options, optim = golden.arrays, golden.options, golden.optim
  g_config, d_config = golden.g_config, golden.d_config
  for name, tensors in (
      ('G_after', pytorch.generator_state_dict(state.g_params, g_config)),
      ('D_after', pytorch.discriminator_state_dict(state.d_params, d_config)),
      ('G_ema_after', pytorch.generator_state_dict(state.ema_params, g_config))):
    for tensor, expected in zip(tensors.values(), arrays[name], strict=True):
      tensor = tensor.astype(np.float64)
      first = tensor.ravel()[:8]
      found = np.array([tensor.sum(), np.linalg.norm(tensor), *first])
      np.testing.assert_allclose(found[:2], expected[:2], rtol=0, atol=1e-3 * max(abs(expected[:2])), err_msg=name)
      # Four Adam steps move a value by about four learning rates; a wrong update would differ by more than 5% of that.
      atol = 0.05 * options['steps'] * min(optim.lr_g, optim.lr_d)
      np.testing.assert_allclose(first, expected[2:len(found)], rtol=0, atol=atol, err_msg=name)


def compiled_flops(function, *args):
  return jax.jit(function).lower(*args).compile().cost_analysis()['flops']


def test_a_step_computes_nothing_that_is_discarded():
  """D's half: one G forward, D forward and backward twice. G's half: G and D forward, backward through both.

  With a backward pass of two forwards that is 4 G + 8 D, less unused input gradients; one needless backward pass
  through G would add 2 G. The benchmark's count agrees with XLA's if the networks are wide, because XLA includes
  element-wise work, and the images large, because XLA leaves out the taps of a convolution that are on the padding.
  """
  fields = tiny_config_dict(image_size=32)
  fields['generator']['num_channels_dae'] = 64
  fields['discriminator']['ngf'] = 16
  config = config_lib.from_config_dict(fields)
  generator, discriminator = train_state.make_networks(config)
  state = jax.eval_shape(lambda: train_state.create(config))
  x = jax.ShapeDtypeStruct((32, 32, 32, 1), jnp.float32)
  t, z = jax.ShapeDtypeStruct((32,), jnp.int32), jax.ShapeDtypeStruct((32, 4), jnp.float32)
  g = compiled_flops(lambda p, x, t, z: generator.apply({'params': p}, x, t, z), state.g_params, x, t, z)
  d = compiled_flops(lambda p, x, t: discriminator.apply({'params': p}, x, t, x), state.d_params, x, t)
  mesh = sharding.make_mesh(jax.devices()[:1])
  step = train_step.make_step_fn(config, mesh, with_r1=False).lower(state, x).compile().cost_analysis()['flops']
  assert 0.8 * (4 * g + 8 * d) < step < 4 * g + 8 * d + g
  count = flops.step_flops(config, False)
  assert count == pytest.approx(step / 32, rel=0.05)
  # R1 that shares D's forward pass costs three of them; forward over reverse would cost four, a separate pass five.
  assert flops.step_flops(config, True) > count


def test_initial_state_is_a_function_of_the_seed(quick_config):
  make = lambda seed: jax.jit(lambda: train_state.create(dataclasses.replace(quick_config, seed=seed)))()
  a, b, other = make(0), make(0), make(1)
  jax.tree.map(np.testing.assert_array_equal, a.g_params, b.g_params)
  assert np.abs(a.g_params['dense_0']['kernel'] - other.g_params['dense_0']['kernel']).max() > 0.01
  jax.tree.map(np.testing.assert_array_equal, a.g_params, a.ema_params)


def test_draws_cover_every_level_and_are_independent():
  draws = train_step.make_draws(jax.random.key(0), (64, 4, 4, 1), num_timesteps=4, latent_dim=8)
  arrays = [
      leaf for half in draws for name, leaf in half._asdict().items()
      if name not in ('t', 'dropout_key') and leaf is not None]
  for half in draws:
    assert set(np.asarray(half.t)) == {0, 1, 2, 3}
  firsts = {float(np.asarray(array).ravel()[0]) for array in arrays}
  assert len(firsts) == len(arrays) == 8
  for array in arrays:
    assert abs(float(array.mean())) < 0.2 and abs(float(array.std()) - 1) < 0.2


def test_r1_is_lazy():
  lazy = penalties.r1(OptimConfig(r1_gamma=1.0, lazy_reg=3))
  assert [lazy.is_due(s) for s in range(7)] == [True, False, False, True, False, False, True]
  assert lazy.variants(0) == (True, False) and lazy.variants(4) == (False, True)
  none = penalties.r1(OptimConfig(r1_gamma=0.0, lazy_reg=3))
  assert not none.is_due(0) and none.variants(0) == (False,)
  assert penalties.r1(OptimConfig(r1_gamma=1.0, lazy_reg=1)).variants(4) == (True,)


def test_cosine_learning_rate():
  schedule = train_state.cosine(2e-4, 1e-5, 100)
  assert float(schedule(0)) == pytest.approx(2e-4)
  assert float(schedule(50)) == pytest.approx((2e-4 + 1e-5) / 2, rel=1e-5)
  assert float(schedule(100)) == float(schedule(1000)) == pytest.approx(1e-5, rel=1e-4)


def test_beta2_and_r1_gamma_follow_cosines_of_images_seen():
  """Adam with a changing beta2 against NumPy, on one parameter; the weight of R1 at the start, middle and end."""
  optim = OptimConfig(
      lr_g=1e-2, lr_d=1e-2, lr_min=1e-3, beta1=0.5, beta2=0.9, beta2_final=0.99, r1_gamma=0.05, r1_gamma_final=0.005,
      schedule_images=80)
  config = Config(data=DataConfig(batch_size=8), optim=optim)
  assert config.schedule_steps == 10 and dataclasses.replace(config, optim=OptimConfig()).schedule_steps == 400_000
  cosine = lambda first, last, step: last + (first - last) * (1 + np.cos(np.pi * min(step / 10, 1))) / 2
  optimizer, _ = train_state.make_optimizers(optim, config.schedule_steps)
  param, mu, nu = np.float64(1), 0.0, 0.0
  found = jnp.float32(1)
  state = optimizer.init(found)
  for step, gradient in enumerate(np.random.default_rng(0).standard_normal(15)):
    beta2 = cosine(0.9, 0.99, step)
    mu, nu = 0.5 * mu + 0.5 * gradient, beta2 * nu + (1 - beta2) * gradient**2
    unbiased = mu / (1 - 0.5 ** (step + 1)), nu / (1 - beta2 ** (step + 1))
    param -= cosine(1e-2, 1e-3, step) * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    update, state = optimizer.update(jnp.float32(gradient), state)
    found = optax.apply_updates(found, update)
  assert float(found) == pytest.approx(param, rel=1e-5)
  weight = objectives.make(config).penalty.weight
  for step in (0, 5, 10, 20):
    assert float(weight(step)) == pytest.approx(cosine(0.05, 0.005, step), rel=1e-5)
  assert penalties.r1(OptimConfig()).weight(7) == 0.02
  with pytest.raises(ConfigError, match='optim.beta2_final is -0.5; use at least 0, or -1 for a constant value'):
    Config(optim=OptimConfig(beta2_final=-0.5))
