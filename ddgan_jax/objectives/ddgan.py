"""Denoising diffusion GAN (Xiao, Kreis and Vahdat, 2022, section 3.2).

D compares real neighbours (x_t, x_{t+1}) of the forward process with (x_t', x_{t+1}), where x_t' is denoised by G:

    x_t ~ q(x_t | x_0),  x_{t+1} ~ q(x_{t+1} | x_t),      x_t' ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z))

    L_D = mean softplus(-D(x_t, t, x_{t+1})) + mean softplus(D(x_t', t, x_{t+1})) + R1 every optim.lazy_reg steps
    L_G = mean softplus(-D(x_t', t, x_{t+1}))
"""

from __future__ import annotations

import dataclasses

import jax

from ddgan_jax import diffusion
from ddgan_jax.objectives import penalties
from ddgan_jax.objectives.base import Metrics, Model, Objective, Pairs, Params, Rows


@dataclasses.dataclass(frozen=True)
class Ddgan(Objective):
  """Non-saturating GAN losses on neighbours of the diffusion process, with lazy R1."""

  name = 'ddgan'

  def pairs(self, model: Model, g_params: Params, rows: Rows) -> Pairs:
    draws = rows.draws
    x_t, x_tp1 = diffusion.q_sample_pair(model.schedule, rows.x_0, draws.t, draws.noise_t, draws.noise_tp1)
    x_0_pred = model.predict(g_params, rows)(x_tp1, draws.t, draws.z)
    x_t_fake = diffusion.sample_posterior(model.schedule, x_0_pred, x_tp1, draws.t, draws.posterior_noise)
    return Pairs(x_t, x_t_fake, draws.t, x_tp1, x_0_pred)

  def discriminator_loss(
      self, model: Model, d_params: Params, pairs: Pairs, rows: Rows, penalized: bool) -> tuple[jax.Array, Metrics]:
    discriminator_fn = model.discriminator_fn(d_params, rows)
    real_logits, fake_logits, penalty = penalties.penalized_logits(
        lambda x: discriminator_fn(x, pairs.t, pairs.x_tp1), pairs.x_t, pairs.x_t_fake,
        self.penalty if penalized else penalties.NONE)
    loss_real = jax.nn.softplus(-real_logits).mean()
    loss_fake = jax.nn.softplus(fake_logits).mean()
    parts = {
        **penalty,
        'loss_d_real': loss_real,
        'loss_d_fake': loss_fake,
        'logits_real': real_logits.mean(),
        'logits_fake': fake_logits.mean(),
    }
    return loss_real + loss_fake + sum(penalty.values()), parts

  def generator_loss(
      self, model: Model, g_params: Params, d_params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
    pairs = self.pairs(model, g_params, rows)
    logits = model.discriminator_fn(d_params, rows)(pairs.x_t_fake, pairs.t, pairs.x_tp1)
    return jax.nn.softplus(-logits).mean(), {}
