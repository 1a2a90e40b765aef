"""The joint step: golden steps, cost, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import diffusion, models, sharding, train_state, train_step
from ddgan_jax.config import DiscriminatorConfig, OptimConfig
from ddgan_jax.interop import pytorch
from tests.conftest import generator_config, golden, nhwc, state_dict


@pytest.mark.parametrize('accumulation, remat', [(1, False), (2, True)])
def test_golden_steps(accumulation, remat):
  """Four steps, two of them with R1: every loss, and afterwards G, D and the EMA."""
  arrays, options = golden('train_step.npz')
  g_config = generator_config(options)
  d_config = DiscriminatorConfig(kind=options['d_kind'], ngf=options['d_ngf'], t_emb_dim=options['d_t_emb_dim'])
  # The original steps its cosine once an epoch, so these four steps have constant learning rates.
  forever = 10**9
  optim = OptimConfig(
      lr_g=options['lr_g'], lr_d=options['lr_d'], lr_min=0.0, beta1=options['beta1'], beta2=options['beta2'],
      ema_decay=options['ema_decay'], r1_gamma=options['r1_gamma'], lazy_reg=options['lazy_reg'])
  g_optimizer, d_optimizer = train_state.make_optimizers(optim, forever)
  g_params = pytorch.generator_params(state_dict(arrays['G_param_names']), g_config)
  d_params = pytorch.discriminator_params(state_dict(arrays['D_param_names']), d_config)
  state = train_state.TrainState(
      step=jnp.int32(0), rng=jax.random.key(0), g_params=g_params, d_params=d_params, ema_params=g_params,
      g_opt_state=g_optimizer.init(g_params), d_opt_state=d_optimizer.init(d_params))
  schedule = diffusion.make_schedule(
      options['num_timesteps'], beta_min=options['beta_min'], beta_max=options['beta_max'])

  @jax.jit(static_argnames='with_r1')
  def run(state, x_0, draws, with_r1):
    return train_step.train_step(
        state, x_0, draws, generator=models.Generator(g_config, remat=remat),
        discriminator=models.Discriminator(d_config, remat=remat), schedule=schedule, optim=optim, num_steps=forever,
        with_r1=with_r1, accumulation=accumulation)

  # The original groups strided rows for the minibatch stddev, this project neighbouring ones.
  order = np.arange(options['batch']).reshape(4, -1).T.ravel()
  for i in range(options['steps']):
    def get(name, i=i):
      array = arrays[f'step{i}/{name}'][order]
      return nhwc(array) if array.ndim == 4 else array

    halves = {
        half: train_step.HalfDraws(
            t=get(f'{half}_t').astype(np.int32), noise_t=get(f'{half}_noise_t'), noise_tp1=get(f'{half}_noise_tp1'),
            z=get(f'{half}_z'), posterior_noise=get(f'{half}_noise_posterior'), dropout_key=jax.random.key(0))
        for half in 'dg'}
    with_r1 = train_step.has_r1(optim, i)
    assert with_r1 == (i % 2 == 0)
    state, metrics = run(state, get('x_0'), train_step.Draws(**halves), with_r1=with_r1)
    for name in ('loss_d_real', 'loss_d_fake', 'loss_g', 'r1_penalty'):
      if name in metrics:
        assert float(metrics[name]) == pytest.approx(float(arrays[f'step{i}/{name}']), rel=1e-4), (i, name)
    assert ('r1_penalty' in metrics) == with_r1

  for name, tensors in (
      ('G_after', pytorch.generator_state_dict(state.g_params, g_config)),
      ('D_after', pytorch.discriminator_state_dict(state.d_params, d_config)),
      ('G_ema_after', pytorch.generator_state_dict(state.ema_params, g_config))):
    for tensor, expected in zip(tensors.values(), arrays[name], strict=True):
      tensor = tensor.astype(np.float64)
      first = tensor.ravel()[:8]
      found = np.array([tensor.sum(), np.linalg.norm(tensor), *first])
      np.testing.assert_allclose(found[:2], expected[:2], rtol=0, atol=1e-3 * max(abs(expected[:2])), err_msg=name)
      # Four Adam steps move a value by about four learning rates: a twentieth of that would show a wrong update.
      atol = 0.05 * options['steps'] * min(optim.lr_g, optim.lr_d)
      np.testing.assert_allclose(first, expected[2:len(found)], rtol=0, atol=atol, err_msg=name)


def flops(function, *args):
  return jax.jit(function).lower(*args).compile().cost_analysis()['flops']


def test_computes_nothing_that_it_throws_away(tiny_config):
  """D's half: one G forward, D forward and backward twice. G's half: G and D forward, backward through both.

  With a backward pass of two forwards that is 4 G + 8 D, less the input gradients that nobody needs; one needless
  backward pass through G would add 2 G.
  """
  config = dataclasses.replace(
      tiny_config, generator=dataclasses.replace(tiny_config.generator, num_channels_dae=32))
  generator, discriminator = train_state.make_networks(config)
  state = jax.eval_shape(lambda: train_state.create(config))
  x = jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32)
  t, z = jax.ShapeDtypeStruct((32,), jnp.int32), jax.ShapeDtypeStruct((32, 4), jnp.float32)
  g = flops(lambda p, x, t, z: generator.apply({'params': p}, x, t, z), state.g_params, x, t, z)
  d = flops(lambda p, x, t: discriminator.apply({'params': p}, x, t, x), state.d_params, x, t)
  mesh = sharding.make_mesh(jax.devices()[:1])
  step = train_step.make_step_fn(config, mesh, with_r1=False).lower(state, x).compile().cost_analysis()['flops']
  assert 0.8 * (4 * g + 8 * d) < step < 4 * g + 8 * d + g


def test_initial_state_is_a_function_of_the_seed(quick_config):
  make = lambda seed: jax.jit(lambda: train_state.create(dataclasses.replace(quick_config, seed=seed)))()
  a, b, other = make(0), make(0), make(1)
  jax.tree.map(np.testing.assert_array_equal, a.g_params, b.g_params)
  assert np.abs(a.g_params['dense_0']['kernel'] - other.g_params['dense_0']['kernel']).max() > 0.01
  jax.tree.map(np.testing.assert_array_equal, a.g_params, a.ema_params)


def test_draws_cover_every_level_and_share_nothing():
  draws = train_step.make_draws(jax.random.key(0), (64, 4, 4, 1), num_timesteps=4, latent_dim=8)
  arrays = [leaf for half in draws for name, leaf in half._asdict().items() if name not in ('t', 'dropout_key')]
  for half in draws:
    assert set(np.asarray(half.t)) == {0, 1, 2, 3}
  firsts = {float(np.asarray(array).ravel()[0]) for array in arrays}
  assert len(firsts) == len(arrays) == 8
  for array in arrays:
    assert abs(float(array.mean())) < 0.2 and abs(float(array.std()) - 1) < 0.2


def test_r1_is_lazy():
  optim = OptimConfig(r1_gamma=1.0, lazy_reg=3)
  assert [train_step.has_r1(optim, s) for s in range(7)] == [True, False, False, True, False, False, True]
  assert not train_step.has_r1(dataclasses.replace(optim, r1_gamma=0.0), 0)
  assert train_step.variants(optim, 0) == (True, False) and train_step.variants(optim, 4) == (False, True)
  assert train_step.variants(dataclasses.replace(optim, r1_gamma=0.0), 0) == (False,)
  assert train_step.variants(dataclasses.replace(optim, lazy_reg=1), 4) == (True,)


def test_cosine_learning_rate():
  schedule = train_state.learning_rate(2e-4, 1e-5, 100)
  assert float(schedule(0)) == pytest.approx(2e-4)
  assert float(schedule(50)) == pytest.approx((2e-4 + 1e-5) / 2, rel=1e-5)
  assert float(schedule(100)) == float(schedule(1000)) == pytest.approx(1e-5, rel=1e-4)
