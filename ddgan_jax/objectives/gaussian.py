"""Gaussian diffusion without a discriminator (Ho, Jain and Abbeel, 2020, equation 14, and its analogue for x_0).

    L_G = mean (noise - G(x_{t+1}, t))²  or  mean (x_0 - G(x_{t+1}, t))²,    x_{t+1} = q_sample(x_0, t+1, noise)

G can be sampled in fewer steps than it was trained with (Nichol and Dhariwal, 2021, section 4).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion
from ddgan_jax.objectives.base import Metrics, Model, Objective, Params, Rows
from ddgan_jax.sampling import GeneratorFn


@dataclasses.dataclass(frozen=True)
class Gaussian(Objective):
  """L2 regression of x_0 or the noise; the latent z is zero in training and in sampling.

  Attributes:
    bound: the range of x_0 is [-bound, bound]; the sampler clips x_0_pred to it, as in Ho et al.
  """

  bound: float = 1.0
  name = 'gaussian'
  has_discriminator = False
  samples_like_original = False
  can_respace = True

  def generator_loss(
      self, model: Model, g_params: Params, d_params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
    del d_params
    x_0, draws = rows.x_0, rows.draws
    x_tp1 = diffusion.q_sample(model.schedule, x_0, draws.t + 1, draws.noise_tp1)
    target = draws.noise_tp1 if model.generator.config.prediction == 'noise' else x_0
    output = model.output(g_params, rows)(x_tp1, draws.t, jnp.zeros_like(draws.z))
    return jnp.square(output - target).mean(), {}

  def make_sampler(
      self, predict: GeneratorFn, schedule: diffusion.Schedule, num_timesteps: int | None = None
  ) -> tuple[GeneratorFn, diffusion.Schedule]:
    def clipped(x_tp1: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
      return jnp.clip(predict(x_tp1, t, jnp.zeros_like(z)), -self.bound, self.bound)

    return super().make_sampler(clipped, schedule, num_timesteps)
