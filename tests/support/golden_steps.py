"""The original's four training steps: initial state, draws and losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import diffusion, models, objectives, train_state, train_step
from ddgan_jax.config import DiscriminatorConfig, OptimConfig
from ddgan_jax.interop import pytorch
from ddgan_jax.objectives import penalties
from ddgan_jax.parallel import compilation
from tests.support import generator_config, golden, nhwc, state_dict

FOREVER = 10**9  # the original steps its cosine once per epoch, so these four steps have constant learning rates


@functools.cache
def golden_steps():
  """One instance per process, which compiles once."""
  return GoldenSteps()


class GoldenSteps:
  """Replays the steps of `train_step.npz`, two of them with R1."""

  def __init__(self):
    self.arrays, self.options = golden('train_step.npz')
    options = self.options
    self.g_config = generator_config(options)
    self.d_config = DiscriminatorConfig(
        kind=options['d_kind'], ngf=options['d_ngf'], t_emb_dim=options['d_t_emb_dim'])
    self.optim = OptimConfig(
        lr_g=options['lr_g'], lr_d=options['lr_d'], lr_min=0.0, beta1=options['beta1'], beta2=options['beta2'],
        ema_decay=options['ema_decay'], r1_gamma=options['r1_gamma'], lazy_reg=options['lazy_reg'])
    schedule = diffusion.make_schedule(
        options['num_timesteps'], beta_min=options['beta_min'], beta_max=options['beta_max'])
    model = objectives.Model(
        models.Generator(self.g_config), models.Discriminator(self.d_config), schedule)
    setup = train_step.Setup(
        objectives.Ddgan(penalties.r1(self.optim)), model, self.optim, FOREVER)
    self._step = compilation.jit(functools.partial(train_step.train_step, setup=setup), static_argnames='with_r1')
    # For the minibatch stddev, the original groups strided rows, this project neighbouring ones.
    self._order = np.arange(options['batch']).reshape(4, -1).T.ravel()

  def initial_state(self):
    g_optimizer, d_optimizer = train_state.make_optimizers(self.optim, FOREVER)
    g_params = pytorch.generator_params(state_dict(self.arrays['G_param_names']), self.g_config)
    d_params = pytorch.discriminator_params(state_dict(self.arrays['D_param_names']), self.d_config)
    return train_state.TrainState(
        step=jnp.int32(0), rng=jax.random.key(0), g_params=g_params, d_params=d_params, ema_params=g_params,
        g_opt_state=g_optimizer.init(g_params), d_opt_state=d_optimizer.init(d_params))

  def step(self, state, i):
    """The state and metrics after step i, with its batch and its draws."""
    def get(name):
      array = self.arrays[f'step{i}/{name}'][self._order]
      return nhwc(array) if array.ndim == 4 else array

    halves = {
        half: train_step.UpdateDraws(
            t=get(f'{half}_t').astype(np.int32), noise_t=get(f'{half}_noise_t'), noise_tp1=get(f'{half}_noise_tp1'),
            z=get(f'{half}_z'), posterior_noise=get(f'{half}_noise_posterior'), dropout_key=jax.random.key(0))
        for half in 'dg'}
    return self._step(
        state, get('x_0'), train_step.Draws(**halves), with_r1=penalties.r1(self.optim).is_due(int(state.step)))

  def check_losses(self, metrics, i):
    for name in ('loss_d_real', 'loss_d_fake', 'loss_g', 'r1_penalty'):
      if name in metrics:
        assert float(metrics[name]) == pytest.approx(float(self.arrays[f'step{i}/{name}']), rel=1e-4), (i, name)
