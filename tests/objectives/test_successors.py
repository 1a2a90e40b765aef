"""The successors of DDGAN: losses and gradients against NumPy, invariances, samplers, and runs of each."""

import dataclasses
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models, objectives, sampling, train_state
from ddgan_jax.config import ConfigError
from ddgan_jax.models import haar
from ddgan_jax.objectives.penalties import GradientPenalty
from ddgan_jax.objectives.reconstruction import Reconstruction
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop
from tests.objectives.test_ablations import normal, random_params, toy_config
from tests.objectives.test_objectives import trained
from tests.support import tiny_config_dict

METHODS = ('relativistic', 'rduot', 'ufogen', 'siddm')
B, SHAPE, T = 6, (2, 2, 1), 4
SCHEDULE = diffusion.make_schedule(T)
TABLES = {name: np.asarray(getattr(SCHEDULE, name), np.float64) for name in ('sqrt_alpha_bar', 'sigma_bar', 'beta')}
GAMMA = 0.7

# Two small networks, the same function of NumPy's float64 and of JAX's arrays.
SIZES = {'g': {'A': (4, 4), 'B': (3, 4), 'c': (4,)}, 'd': {'M': (4, 5), 'N': (4, 5), 'v': (5,), 'w': (5,)}}


def generator(xp, p, x_tp1, t, z):
  return xp.tanh(x_tp1.reshape(-1, 4) @ p['A'] + z @ p['B'] + t[:, None] * p['c']).reshape(-1, *SHAPE)


def discriminator(xp, p, x_t, t, x_tp1):
  return xp.tanh(x_t.reshape(-1, 4) @ p['M'] + x_tp1.reshape(-1, 4) @ p['N'] + t[:, None] * p['v']) @ p['w']


def parameters(network, seed):
  rng = np.random.default_rng(seed)
  return {name: 0.5 * rng.standard_normal(shape) for name, shape in SIZES[network].items()}


G, D = parameters('g', 1), parameters('d', 2)


@dataclasses.dataclass(frozen=True)
class Network:
  """What the objectives use of a Flax module."""

  function: Callable
  config: config_lib.GeneratorConfig = config_lib.GeneratorConfig(kind='mlp')

  def apply(self, variables, *args):
    return self.function(jnp, variables['params'], *args)


MODEL = objectives.Model(Network(generator), Network(discriminator), SCHEDULE)
NOISE_T, NOISE_TP1, POSTERIOR, EXTRA, X_0, Z = normal(*[(B, *SHAPE)] * 5, (B, 3))
X_0 = np.tanh(X_0)
LEVELS = np.array([0, 1, 2, 3, 0, 2], np.int32)
DRAWS = objectives.UpdateDraws(LEVELS, NOISE_T, NOISE_TP1, Z, POSTERIOR, None, extra_noise=EXTRA[:, None])
ROWS = objectives.Rows(X_0, DRAWS, np.arange(B), None, np.int32(0))


def objective(method, **fields):
  penalty = GradientPenalty(GAMMA, fake=method == 'relativistic')
  classes = {'relativistic': objectives.Relativistic, 'rduot': objectives.Rduot, 'ufogen': objectives.Ufogen,
             'siddm': objectives.Siddm}
  return classes[method](penalty, **fields)


def model_of(method):
  return dataclasses.replace(MODEL, schedule=diffusion.marginal_posterior(SCHEDULE)) if method == 'ufogen' else MODEL


def softplus(x):
  return np.logaddexp(0, x)


def column(values):
  return np.asarray(values)[:, None, None, None]


def expected_pairs(method, g):
  """x_t, x_t', x_{t+1} and the prediction in float64, from the formulas of the forward process and Bayes' rule."""
  a, s, beta = (TABLES[name] for name in ('sqrt_alpha_bar', 'sigma_bar', 'beta'))
  t = LEVELS
  x_t = column(a[t]) * X_0 + column(s[t]) * NOISE_T
  x_tp1 = column(np.sqrt(1 - beta[t + 1])) * x_t + column(np.sqrt(beta[t + 1])) * NOISE_TP1
  x_0_pred = generator(np, g, x_tp1, t, Z)
  if method == 'ufogen':
    fake = column(a[t]) * x_0_pred + column(s[t] * (t > 0)) * POSTERIOR
  else:
    # q(x_t | x_{t+1}, x_0): the product of N(a_t x_0, s_t²) and N(x_{t+1} | sqrt(1 - beta) x_t, beta).
    precision = 1 / np.maximum(s[t]**2, 1e-12) + (1 - beta[t + 1]) / beta[t + 1]
    mean = (column(a[t] / np.maximum(s[t]**2, 1e-12)) * x_0_pred
            + column(np.sqrt(1 - beta[t + 1]) / beta[t + 1]) * x_tp1) / column(precision)
    fake = np.where(column(t) > 0, mean + column(precision**-0.5) * POSTERIOR, x_0_pred)
  return x_t, fake, x_tp1, x_0_pred


def input_gradients(d, x, x_tp1):
  """‖∂D/∂x‖² of each row by central differences."""
  total = np.zeros(B)
  for i in range(4):
    step = 1e-5 * np.eye(4)[i].reshape(SHAPE)
    up, down = (discriminator(np, d, x + sign * step, LEVELS, x_tp1) for sign in (1, -1))
    total += ((up - down) / 2e-5) ** 2
  return total


def expected_losses(method, g, d, psi='softplus', weight=None):
  """(L_D with penalties, L_G) in float64."""
  x_t, fake, x_tp1, x_0_pred = expected_pairs(method, g)
  seen = np.zeros_like(x_tp1) if method in ('ufogen', 'siddm') else x_tp1
  a, b = discriminator(np, d, x_t, LEVELS, seen), discriminator(np, d, fake, LEVELS, seen)
  r1, r2 = (GAMMA / 2 * input_gradients(d, x, seen).mean() for x in (x_t, fake))
  if method == 'relativistic':
    return softplus(-(a - b)).mean() + r1 + r2, softplus(-(b - a)).mean()
  if method == 'rduot':
    function = {'softplus': softplus, 'kl': np.exp, 'identity': lambda u: u,
                'chi_square': lambda u: np.maximum(u, -2) ** 2 / 4 + np.maximum(u, -2)}[psi]
    cost = weight * ((x_0_pred - x_tp1) ** 2).sum((1, 2, 3))
    return function(-a).mean() + function(b - cost).mean() + r1, (cost - b).mean()
  if method == 'ufogen':
    regression = (column(TABLES['sqrt_alpha_bar'][LEVELS] ** 2) * (x_0_pred - X_0) ** 2).mean()
  else:
    beta = column(TABLES['beta'][LEVELS + 1])
    regression = ((np.sqrt(1 - beta) * fake + np.sqrt(beta) * EXTRA - x_tp1) ** 2).mean()
  return softplus(-a).mean() + softplus(b).mean() + r1, softplus(-b).mean() + weight * regression


CASES = [('relativistic', {}), ('ufogen', {'regression_weight': 0.5}), ('siddm', {'regression_weight': 2.0}),
         *(('rduot', {'psi': psi, 'cost_weight': 0.05}) for psi in ('softplus', 'kl', 'chi_square', 'identity'))]


@pytest.mark.parametrize('method, fields', CASES, ids=str)
def test_losses_and_gradients_match_the_formulas(method, fields):
  """In float64 NumPy; gradients along a random direction by central differences."""
  tested, model = objective(method, **fields), model_of(method)
  weight = fields.get('cost_weight', fields.get('regression_weight'))

  def d_loss(d):
    pairs = jax.lax.stop_gradient(tested.pairs(model, G, ROWS))
    return tested.discriminator_loss(model, d, pairs, ROWS, True)[0]

  def g_loss(g):
    return tested.generator_loss(model, g, D, ROWS)[0]

  formulas = (lambda d: expected_losses(method, G, d, fields.get('psi'), weight)[0],
              lambda g: expected_losses(method, g, D, fields.get('psi'), weight)[1])
  for loss, formula, params, seed in zip((d_loss, g_loss), formulas, (D, G), (3, 4), strict=True):
    value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.float32, params))
    assert float(value) == pytest.approx(formula(params), rel=2e-5)
    rng = np.random.default_rng(seed)
    direction = {name: rng.standard_normal(leaf.shape) for name, leaf in params.items()}
    up, down = (formula({name: leaf + sign * 1e-5 * direction[name] for name, leaf in params.items()})
                for sign in (1, -1))
    slope = sum((np.asarray(gradient[name], np.float64) * direction[name]).sum() for name in params)
    assert slope == pytest.approx((up - down) / 2e-5, rel=2e-3, abs=1e-5)


def test_relativistic_losses_of_constant_and_swapped_logits():
  """A constant D gives log 2 to both; a swap of real and fake swaps the two losses; a shift of D changes nothing."""
  tested = objective('relativistic')
  a, b = (jnp.asarray(x) for x in normal((8,), (8,)))
  pairing = lambda real, fake: float(tested.losses_of_logits(real, fake, None)['loss_d_pairing'])
  pairs = objectives.Pairs(a, b, None, None, None)

  def g_loss(real, fake):
    return float(tested.generator_loss_of_logits(fake, lambda *unused: real, None, pairs, None)[0])

  assert pairing(a, a) == pytest.approx(np.log(2)) == g_loss(a, a)
  assert pairing(a, b) == pytest.approx(g_loss(b, a)) and pairing(a, b) == pytest.approx(pairing(a + 3, b + 3))


def test_rduot_without_cost_and_with_softplus_is_ddgan_for_d():
  free, ddgan = objective('rduot', cost_weight=0.0), objectives.Ddgan(GradientPenalty(GAMMA))
  pairs = ddgan.pairs(MODEL, G, ROWS)
  losses = [tested.discriminator_loss(MODEL, D, pairs, ROWS, True)[0] for tested in (free, ddgan)]
  assert float(losses[0]) == float(losses[1])


@pytest.mark.parametrize('decay_steps, step, factor', [
    (None, 50, 1), (100, 0, 0.9975274), (100, 50, 0.5), (100, 100, 0.0024726)])
def test_reconstruction_term(decay_steps, step, factor):
  """weight · factor · mean |x_0_pred - x_0|, in pixels or in Haar coefficients / 2."""
  rows = ROWS._replace(step=np.int32(step))
  x_0_pred, = normal((B, *SHAPE), seed=9)
  difference = np.float64(x_0_pred) - X_0
  found = Reconstruction(2.0, decay_steps)(x_0_pred, rows)
  assert float(found) == pytest.approx(2 * factor * np.abs(difference).mean(), rel=1e-4)
  a, b, c, d = (difference[:, i, j, 0] for i in range(2) for j in range(2))
  coefficients = np.abs([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]).mean() / 4
  found = Reconstruction(2.0, decay_steps, in_haar_space=True)(x_0_pred, rows)
  assert float(found) == pytest.approx(2 * factor * coefficients, rel=1e-4)
  plain, added = (dataclasses.replace(objective('siddm'), reconstruction=Reconstruction(w)) for w in (0.0, 2.0))
  losses = [float(tested.generator_loss(MODEL, G, D, ROWS)[0]) for tested in (plain, added)]
  distance = np.abs(expected_pairs('siddm', G)[3] - X_0).mean()
  assert losses[1] - losses[0] == pytest.approx(2 * distance, rel=1e-4)


def test_ufogen_sampler_forgets_x_tp1():
  """x_t = a_t x̂_0 + s_t ε at each level, also in two of four steps, with G called at the long levels; x̂_0 at last."""
  seen = []

  def predict(x_tp1, t, z):
    seen.append((np.asarray(t)[0], np.asarray(x_tp1)))
    return jnp.full_like(x_tp1, 0.25 * (len(seen)))

  tested = objective('ufogen')
  for num_timesteps, levels in ((4, [3, 2, 1, 0]), (2, [3, 1]), (1, [3])):
    seen.clear()
    generator_fn, schedule = tested.make_sampler(predict, diffusion.marginal_posterior(SCHEDULE), num_timesteps)
    x_T, z, noise = normal((B, *SHAPE), (num_timesteps, B, 3), (num_timesteps, B, *SHAPE))
    with jax.disable_jit():
      image = sampling.sample_given_noise(generator_fn, schedule, x_T, z, noise)
    assert [level for level, _ in seen] == levels
    for i, (level, x_tp1) in enumerate(seen[1:]):
      t = level + 1
      expected = TABLES['sqrt_alpha_bar'][t] * 0.25 * (i + 1) + TABLES['sigma_bar'][t] * noise[i]
      np.testing.assert_allclose(x_tp1, expected, atol=1e-5)
    np.testing.assert_allclose(image, 0.25 * num_timesteps, atol=1e-6)


def run_config(method, **generator):
  """Splits over the eight devices of the tests."""
  config = toy_config(method, **generator)
  return dataclasses.replace(config, discriminator=dataclasses.replace(config.discriminator, stddev_group=1))


def with_schedules(config):
  """The config with every option that changes the state or the weights during training."""
  return dataclasses.replace(config, optim=dataclasses.replace(
      config.optim, beta2_final=0.99, r1_gamma_final=0.01, schedule_images=64, ema_profiles=True))


@pytest.mark.parametrize('method', METHODS)
def test_eight_devices_with_two_microbatches_match_one(method):
  config = with_schedules(run_config(method))
  expected, state = trained(config, num_devices=1)
  split = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, accumulation=2))
  history, other = trained(split, num_devices=8)
  for actual, reference in zip(history, expected, strict=True):
    assert set(actual) == set(reference)
    for name, value in reference.items():
      np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
  for name in ('g_params', 'ema_profiles'):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), getattr(other, name), getattr(state, name))


@pytest.mark.parametrize('method', METHODS)
def test_a_run_resumes_with_the_same_bits_and_samples(method, tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  config = with_schedules(run_config(method, num_classes=25))
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=4, checkpoint_every=2))
  assert loop.train_and_evaluate(config, str(tmp_path / 'whole'))
  shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
  shutil.rmtree(tmp_path / 'resumed' / 'checkpoints' / '4')
  assert loop.train_and_evaluate(config, str(tmp_path / 'resumed'))
  abstract = train_state.abstract_state(config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  states = [Checkpoints(str(tmp_path / name)).restore(abstract, 4) for name in ('whole', 'resumed')]
  for a, b in zip(*(jax.tree.leaves(state.replace(rng=0)) for state in states), strict=True):
    np.testing.assert_array_equal(a, b)
  for steps in (1, 2) if method in ('ufogen', 'siddm') else (4,):
    run = ddgan_jax.load(tmp_path / 'whole', num_timesteps=steps)
    points = run.sample(jax.random.key(0), 5, label=7)
    assert points.shape == (5, 1, 1, 2) and np.isfinite(points).all() and run.schedule.num_timesteps == steps


def test_haar_transform():
  """Orthonormal, exact in float32 for bytes, and in the order of the formula; white noise stays white."""
  x, = normal((3, 6, 4, 2))
  y = np.asarray(haar.forward(x))
  a, b, c, d = (np.float64(x)[:, i::2, j::2] for i in range(2) for j in range(2))
  expected = np.concatenate([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], axis=-1) / 2
  np.testing.assert_allclose(y, expected, atol=1e-6)
  pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 2)).astype(np.float32)
  np.testing.assert_array_equal(haar.inverse(haar.forward(pixels)), pixels)
  matrix = np.stack([np.asarray(haar.forward(unit.reshape(4, 4, 1))).ravel() for unit in np.eye(16, dtype=np.float32)])
  np.testing.assert_array_equal(matrix @ matrix.T, np.eye(16))


def test_networks_in_haar_space():
  """G and D on pixels equal plain networks on coefficients; a tanh at the output bounds coefficients to [-2, 2]."""
  config = config_lib.from_config_dict(tiny_config_dict(num_channels=3, transform='haar'))
  inner = dict(image_size=4, num_channels=12, transform='none')
  shapes = train_state.abstract_state(config, None)
  g_params, d_params = random_params(shapes.g_params, 1.0), random_params(shapes.d_params)
  x_t, x_tp1, z = normal((4, 8, 8, 3), (4, 8, 8, 3), (4, 4))
  t = np.array([0, 1, 1, 0])
  g, d = train_state.make_networks(config)
  plain = models.Generator(dataclasses.replace(g.config, **inner))
  expected = 2 * plain.apply({'params': g_params}, haar.forward(x_tp1), t, z)
  assert 1 < np.abs(expected).max() <= 2
  np.testing.assert_allclose(g.apply({'params': g_params}, x_tp1, t, z), haar.inverse(expected), atol=1e-5)
  plain = models.Discriminator(dataclasses.replace(d.config, **inner))
  logits = d.apply({'params': d_params}, x_t, t, x_tp1)
  # The pair's coefficients alternate in the first layer of d, and follow each other in that of the plain network.
  kernel = d_params['conv_in']['kernel'].reshape(1, 1, 4, 2, 3, -1)  # coefficient, image, channel
  kernel = kernel.transpose(0, 1, 3, 2, 4, 5).reshape(1, 1, 24, -1)
  d_params['conv_in']['kernel'] = kernel
  expected = plain.apply({'params': d_params}, haar.forward(x_t), t, haar.forward(x_tp1))
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fields, message', [
    ({'method': 'ufogen', 'objective': {'psi': 'kl'}}, "^objective.psi is 'kl'; use it with method='rduot', or leave"),
    ({'objective': {'reconstruction_schedule': 'sigmoid'}}, "^objective.reconstruction_schedule is 'sigmoid'; set"),
    ({'method': 'relativistic'}, "^optim.lazy_reg is 15; use 1 with method='relativistic'"),
    ({'optim': {'r1_gamma': 0, 'r1_gamma_final': 0.1}}, '^optim.r1_gamma is 0 and r1_gamma_final is 0.1; set'),
    ({'method': 'augmented_gan', 'objective': {'reconstruction_weight': 1.0}}, '^objective.reconstruction_weight is'),
    ({'method': 'gaussian', 'objective': {'reconstruction_weight': 1.0}}, '^objective.reconstruction_weight is 1.0;'),
    ({'method': 'rduot', 'generator': {'kind': 'mlp', 'prediction': 'x_t'}}, "^generator.prediction is 'x_t'; use 'x"),
    ({'generator': {'kind': 'mlp', 'prediction': 'x_t'}, 'objective': {'reconstruction_weight': 1.0}},
     "^objective.reconstruction_weight is 1.0; use 0 with generator.prediction='x_t'"),
    ({'data': {'transform': 'haar', 'image_size': 8}, 'generator': {'kind': 'mlp'}},
     "^data.transform is 'haar'; use 'none' with generator.kind='mlp'"),
    ({'data': {'transform': 'haar', 'image_size': 4}, 'generator': {'ch_mult': (1, 2, 2)}},
     r"^data.image_size is 4; use a multiple of 8, because generator.ch_mult=\(1, 2, 2\) and data.transform='haar'"),
    ({'data': {'transform': 'haar', 'image_size': 8}, 'generator': {'ch_mult': (1,), 'attn_resolutions': ()}},
     "^data.image_size is 8; use a multiple of 16, because discriminator.kind='small' and data.transform='haar'"),
])
def test_wrong_combinations_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    config_lib.from_config_dict(fields)
