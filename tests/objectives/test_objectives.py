"""The protocol of training objectives: one defined here trains and samples, and the built-in ones follow it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, objectives, sampling, train_state, train_step
from ddgan_jax.config import ConfigError, OptimConfig, checks
from ddgan_jax.objectives import penalties
from ddgan_jax.objectives.penalties import GradientPenalty
from ddgan_jax.parallel import sharding
from tests.objectives.test_ablations import BATCH, normal, random_state, toy_config


@dataclasses.dataclass(frozen=True)
class LeastSquares(objectives.Ddgan):
  """Least-squares GAN (Mao et al., 2017) whose D does not see x_{t+1}, with R1, R2 and a regression.

      L_D = mean (D(x_t) - 1)² + mean D(x_t')²,  L_G = mean (D(x_t') - 1)² + step · mean (x'_{t+1} - x_{t+1})²

  x'_{t+1} is a Markov step from x_t', with noise that no other objective needs.
  """

  name = 'least_squares'
  can_respace = True
  extra_noise = 1

  def pairs(self, model, g_params, rows):
    pairs = super().pairs(model, g_params, rows)
    return pairs._replace(x_tp1=jnp.zeros_like(pairs.x_tp1))

  def discriminator_loss(self, model, d_params, pairs, rows, penalized):
    discriminator_fn = model.discriminator_fn(d_params, rows)
    real, fake, parts = penalties.penalized_logits(
        lambda x: discriminator_fn(x, pairs.t, pairs.x_tp1), pairs.x_t, pairs.x_t_fake,
        self.penalty if penalized else penalties.NONE)
    return jnp.square(real - 1).mean() + jnp.square(fake).mean() + sum(parts.values()), parts

  def generator_loss(self, model, g_params, d_params, rows):
    pairs = super().pairs(model, g_params, rows)
    logits = model.discriminator_fn(d_params, rows)(pairs.x_t_fake, pairs.t, jnp.zeros_like(pairs.x_tp1))
    x_tp1_fake = diffusion.q_step(model.schedule, pairs.x_t_fake, pairs.t, rows.draws.extra_noise[:, 0])
    regression = rows.step * jnp.square(x_tp1_fake - pairs.x_tp1).mean()
    return jnp.square(logits - 1).mean() + regression, {'regression': regression}


TOY = LeastSquares(GradientPenalty(gamma=0.1, interval=2, fake=True))


def trained(config, num_devices, num_steps=2, one_program=False):
  """The metrics of each training step, and the last state."""
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  state = jax.device_put(
      random_state(config), sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh))))
  batches = np.stack([np.tanh(normal((BATCH, 1, 1, 2), seed=seed)[0]) for seed in range(num_steps)])
  if one_program:
    state, metrics = train_step.make_steps_fn(config, mesh)(state, batches)
    return [{name: value[i] for name, value in metrics.items()} for i in range(num_steps)], state
  history = []
  for i, x_0 in enumerate(batches):
    step = train_step.make_step_fn(config, mesh, objectives.make(config).penalty.is_due(i))
    state, metrics = step(state, jax.device_put(x_0, sharding.batch_sharding(mesh)))
    history.append(metrics)
  return history, state


def test_a_custom_objective_trains_and_samples(monkeypatch):
  """Its class is enough: its metrics are logged, its penalties are lazy, and it samples in 2 of 4 steps."""
  monkeypatch.setattr(objectives, 'make', lambda config: TOY)
  config = toy_config()
  metrics, state = trained(config, num_devices=1)
  common = {'loss_d', 'loss_g', 'regression', 'grad_norm_d', 'grad_norm_g', 'lr_d', 'lr_g'}
  assert [set(row) for row in metrics] == [common | {'r1_penalty', 'r2_penalty'}, common]
  assert float(metrics[0]['regression']) == 0 < float(metrics[1]['regression'])
  before = random_state(config)
  for name in ('g_params', 'd_params', 'ema_params'):
    for old, new in zip(*(jax.tree.leaves(getattr(s, name)) for s in (before, state)), strict=True):
      assert np.abs(np.asarray(new) - old).max() > 0, name
  generator_fn, schedule = train_state.make_sampler(config, state.ema_params, 2)
  images = jax.jit(lambda key: sampling.sample(key, generator_fn, schedule, (8, 1, 1, 2), config.generator.nz))(
      jax.random.key(0))
  assert schedule.num_timesteps == 2 and np.isfinite(images).all() and np.ptp(np.asarray(images)) > 1e-3


@pytest.mark.parametrize('num_devices, accumulation, one_program', [(2, 2, False), (1, 1, True)])
def test_a_custom_objective_runs_on_devices_and_in_one_program(monkeypatch, num_devices, accumulation, one_program):
  """Two devices with two microbatches, or both steps in one program: the losses of single steps on one device."""
  monkeypatch.setattr(objectives, 'make', lambda config: TOY)
  expected, state = trained(toy_config(), num_devices=1)
  config = toy_config(accumulation=accumulation)
  config = dataclasses.replace(
      config, train=dataclasses.replace(config.train, steps_per_call=2 if one_program else 1))
  history, other = trained(config, num_devices, one_program=one_program)
  for actual, reference in zip(history, expected, strict=True):
    for name, value in reference.items():
      np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
  if one_program:
    assert history[1]['r1_penalty'] == history[1]['r2_penalty'] == 0 < history[0]['r2_penalty']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other.g_params, state.g_params)


def test_penalties_are_squared_gradients_of_real_and_of_fake():
  """Against finite differences of a nonlinear D; penalties do not affect each other or the logits."""
  matrix, = normal((4, 4))
  x_t, x_t_fake = normal((3, 2, 2, 1), (3, 2, 2, 1), seed=1)

  def discriminator_fn(x):
    flat = x.reshape(3, 4)
    return ((flat @ matrix) * flat).sum(1) * np.array([1, 2, 3]) + flat.sum(1)

  def squared_gradient(x):
    total, step = np.zeros(3), 1e-3
    for i in range(4):
      moved = [np.float64(x).reshape(3, 4) + sign * step * np.eye(4)[i] for sign in (1, -1)]
      up, down = (discriminator_fn(side.reshape(x.shape)) for side in moved)
      total += ((up - down) / (2 * step)) ** 2
    return total.mean()

  for penalty, expected in (
      (penalties.NONE, {}),
      (GradientPenalty(0.5), {'r1_penalty': x_t}),
      (GradientPenalty(0.5, real=False, fake=True), {'r2_penalty': x_t_fake}),
      (GradientPenalty(0.5, fake=True), {'r1_penalty': x_t, 'r2_penalty': x_t_fake})):
    real, fake, parts = penalties.penalized_logits(discriminator_fn, x_t, x_t_fake, penalty)
    np.testing.assert_allclose(real, discriminator_fn(x_t), rtol=1e-5)
    np.testing.assert_allclose(fake, discriminator_fn(x_t_fake), rtol=1e-5)
    assert tuple(parts) == penalty.names == tuple(expected)
    for name, x in expected.items():
      assert float(parts[name]) == pytest.approx(0.25 * squared_gradient(x), rel=1e-3)


def test_extra_noise_changes_no_other_draw():
  shape = (64, 2, 2, 1)
  for label_dropout in (0.0, 0.5):
    plain = train_step.make_draws(jax.random.key(0), shape, 4, 3, label_dropout)
    extended = train_step.make_draws(jax.random.key(0), shape, 4, 3, label_dropout, extra_noise=2)
    for half, other in zip(plain, extended):
      jax.tree.map(np.testing.assert_array_equal, half._replace(dropout_key=None),
                   other._replace(dropout_key=None, extra_noise=None))
      assert half.extra_noise is None and other.extra_noise.shape == (64, 2, 2, 2, 1)
      noise = np.asarray(other.extra_noise)
      assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2
      assert len({float(array.ravel()[0]) for array in (
          noise[:, 0], noise[:, 1], np.asarray(other.posterior_noise), np.asarray(other.noise_t))}) == 4


def test_every_method_of_the_config_has_an_objective():
  fields = {'ddgan': 'x_t', 'gaussian': 'noise', 'augmented_gan': 'x_0', 'relativistic': 'x_t', 'rduot': 'x_0',
            'ufogen': 'noise', 'siddm': 'noise'}
  assert set(fields) == set(checks.PREDICTIONS)
  optim = OptimConfig(r1_gamma=0.1, lazy_reg=1)
  for method, prediction in fields.items():
    config = toy_config(method, prediction=prediction)
    objective = objectives.make(config)
    assert objective.name == method
    penalty = GradientPenalty(0.1, fake=method == 'relativistic')
    assert objective.penalty == (penalty if objective.has_discriminator else penalties.NONE)
    assert (train_state.make_networks(config)[1] is not None) == objective.has_discriminator
    assert objective.penalty.variants(0) == (
        penalties.r1(optim).variants(0) if objective.has_discriminator else (False,))


def test_an_objective_without_a_discriminator_has_no_pairs():
  with pytest.raises(NotImplementedError, match='gaussian has no discriminator'):
    objectives.Gaussian().pairs(None, None, None)


@pytest.mark.parametrize('method, num_timesteps, message', [
    ('ddgan', 1, "num_timesteps is 1; use 4, the only number of steps of a run with method='ddgan'"),
    ('augmented_gan', 4, "num_timesteps is 4; use 1, the only number of steps of a run with method='augmented_gan'"),
    ('gaussian', 3, 'num_timesteps is 3; use a divisor of 4'),
    ('gaussian', 0, 'num_timesteps is 0; use a divisor of 4'),
])
def test_the_objective_refuses_a_wrong_number_of_steps(method, num_timesteps, message):
  objective = objectives.make(toy_config(method))
  with pytest.raises(ConfigError, match=message):
    objective.make_sampler(lambda x_tp1, t, z: x_tp1, diffusion.make_schedule(4), num_timesteps)


def test_an_unknown_method_is_refused():
  with pytest.raises(ConfigError, match="method is 'least_squares'; use one of 'ddgan', 'gaussian'"):
    config_lib.from_config_dict({'method': 'least_squares'})
