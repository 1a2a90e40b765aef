"""UFOGen: an adversary on the marginal, and regression of x_0 (Xu et al., 2024, arXiv 2311.09257).

    x_t' ~ q(x_t | G(x_{t+1}, t, z)), with fresh noise and no posterior;  D sees x_t or x_t', and 0 in place of x_{t+1}
    L_D = mean softplus(-D(x_t)) + mean softplus(D(x_t')) + R1 every optim.lazy_reg steps
    L_G = mean softplus(-D(x_t')) + regression_weight · mean alpha_bar_t (x_0_pred - x_0)²

The weight alpha_bar_t makes the last term the squared distance of the means of x_t' and x_t. One training serves any
number of evaluations that divides T: the sampler alternates G and q(x_t | x_0_pred), and returns the last x_0_pred.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion
from ddgan_jax.config import Config
from ddgan_jax.objectives.base import DiscriminatorFn, Metrics, Model, Pairs, Rows
from ddgan_jax.objectives.ddgan import Ddgan
from ddgan_jax.sampling import GeneratorFn


@dataclasses.dataclass(frozen=True)
class Ufogen(Ddgan):
  """The losses of `Ddgan` on marginals, with a regression.

  Attributes:
    regression_weight: weight of the regression.
  """

  regression_weight: float = 1.0
  name = 'ufogen'
  can_respace = True
  conditions_on_x_tp1 = False
  samples_like_original = False

  def make_schedule(self, config: Config) -> diffusion.Schedule:
    # With these tables the posterior of `Ddgan.pairs` is q(x_t | x_0_pred).
    return diffusion.marginal_posterior(super().make_schedule(config))

  def generator_loss_of_logits(
      self, fake_logits: jax.Array, discriminator_fn: DiscriminatorFn, model: Model, pairs: Pairs, rows: Rows
  ) -> tuple[jax.Array, Metrics]:
    alpha_bar = jnp.square(jnp.asarray(model.schedule.sqrt_alpha_bar)[pairs.t])
    squares = jnp.square(pairs.x_0_pred - rows.x_0).mean((1, 2, 3))
    regression = self.regression_weight * (alpha_bar * squares).mean()
    return jax.nn.softplus(-fake_logits).mean() + regression, {'regression': regression}

  def make_sampler(
      self, predict: GeneratorFn, schedule: diffusion.Schedule, num_timesteps: int | None = None
  ) -> tuple[GeneratorFn, diffusion.Schedule]:
    generator_fn, schedule = super().make_sampler(predict, schedule, num_timesteps)
    return generator_fn, diffusion.marginal_posterior(schedule)
