"""Diffusion as augmentation of a one-shot GAN (Xiao, Kreis and Vahdat, 2022, ablation study).

G maps pure noise to an image; D compares real and generated images, both diffused to a random level t:

    x_t ~ q(x_t | x_0),      x_t' ~ q(x_t | G(noise, T-1, z)),      0 in place of x_{t+1}

The losses are those of `ddgan`. The T levels include level 0, the undiffused images.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ddgan_jax import diffusion
from ddgan_jax.objectives.base import Model, Pairs, Params, Rows
from ddgan_jax.objectives.ddgan import Ddgan


@dataclasses.dataclass(frozen=True)
class AugmentedGan(Ddgan):
  """The losses of `Ddgan` on diffused images; sampled in one step from pure noise."""

  name = 'augmented_gan'
  conditions_on_x_tp1 = False
  samples_like_original = False

  def pairs(self, model: Model, g_params: Params, rows: Rows) -> Pairs:
    """Uses the draws noise_tp1 as G's input and posterior_noise to diffuse its output."""
    draws = rows.draws
    x_t = diffusion.q_sample(model.schedule, rows.x_0, draws.t, draws.noise_t)
    last = jnp.full_like(draws.t, model.schedule.num_timesteps - 1)
    x_0_pred = model.predict(g_params, rows)(draws.noise_tp1, last, draws.z)
    x_t_fake = diffusion.q_sample(model.schedule, x_0_pred, draws.t, draws.posterior_noise)
    return Pairs(x_t, x_t_fake, draws.t, None, x_0_pred)

  def default_steps(self, trained: int) -> int:
    del trained
    return 1
