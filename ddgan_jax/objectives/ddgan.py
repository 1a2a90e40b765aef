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
from ddgan_jax.objectives.base import DiscriminatorFn, Metrics, Model, Objective, Pairs, Params, Rows
from ddgan_jax.objectives.reconstruction import NO_RECONSTRUCTION, Reconstruction


@dataclasses.dataclass(frozen=True)
class Ddgan(Objective):
  """Non-saturating GAN losses on neighbours of the diffusion process, with lazy R1.

  Other adversarial objectives are subclasses that change the pairs or the losses of their logits.

  Attributes:
    reconstruction: a term that is added to L_G.
  """

  reconstruction: Reconstruction = NO_RECONSTRUCTION
  name = 'ddgan'

  def pairs(self, model: Model, g_params: Params, rows: Rows) -> Pairs:
    draws = rows.draws
    x_t, x_tp1 = diffusion.q_sample_pair(model.schedule, rows.x_0, draws.t, draws.noise_t, draws.noise_tp1)
    x_0_pred = model.predict(g_params, rows)(x_tp1, draws.t, draws.z)
    x_t_fake = diffusion.sample_posterior(model.schedule, x_0_pred, x_tp1, draws.t, draws.posterior_noise)
    return Pairs(x_t, x_t_fake, draws.t, x_tp1 if self.conditions_on_x_tp1 else None, x_0_pred)

  def discriminator_loss(
      self, model: Model, d_params: Params, pairs: Pairs, rows: Rows, penalized: bool) -> tuple[jax.Array, Metrics]:
    discriminator_fn = model.discriminator_fn(d_params, rows)
    real_logits, fake_logits, penalty = penalties.penalized_logits(
        lambda x: discriminator_fn(x, pairs.t, pairs.x_tp1), pairs.x_t, pairs.x_t_fake,
        self.penalty if penalized else penalties.NONE, rows.step)
    losses = self.losses_of_logits(real_logits, fake_logits, pairs)
    parts = {
        **penalty,
        **losses,
        'logits_real': real_logits.mean(),
        'logits_fake': fake_logits.mean(),
    }
    return sum(losses.values()) + sum(penalty.values()), parts

  def losses_of_logits(self, real_logits: jax.Array, fake_logits: jax.Array, pairs: Pairs) -> Metrics:
    """The terms of D's loss without penalties, from the logits [B] of `pairs`; `discriminator_loss` adds them up."""
    return {'loss_d_real': jax.nn.softplus(-real_logits).mean(), 'loss_d_fake': jax.nn.softplus(fake_logits).mean()}

  def generator_loss(
      self, model: Model, g_params: Params, d_params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
    pairs = self.pairs(model, g_params, rows)
    discriminator_fn = model.discriminator_fn(d_params, rows)
    logits = discriminator_fn(pairs.x_t_fake, pairs.t, pairs.x_tp1)
    loss, parts = self.generator_loss_of_logits(logits, discriminator_fn, model, pairs, rows)
    if self.reconstruction.weight:
      parts = parts | {'reconstruction': self.reconstruction(pairs.x_0_pred, rows)}
      loss += parts['reconstruction']
    return loss, parts

  def generator_loss_of_logits(
      self, fake_logits: jax.Array, discriminator_fn: DiscriminatorFn, model: Model, pairs: Pairs, rows: Rows
  ) -> tuple[jax.Array, Metrics]:
    """G's loss without the reconstruction term, from the logits [B] of the fake pairs, and its parts to log."""
    del discriminator_fn, model, pairs, rows
    return jax.nn.softplus(-fake_logits).mean(), {}
