"""SIDDM: an adversary on the marginal, and regression of x_{t+1} (Xu et al., 2023, arXiv 2306.12511).

The joint distribution of neighbours is matched in two parts, q(x_t) by D and q(x_{t+1} | x_t) by regression:

    x_t' ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z)) as in `ddgan`;  D sees x_t or x_t', and 0 in place of x_{t+1}
    x'_{t+1} ~ q(x_{t+1} | x_t'), with fresh noise
    L_D = mean softplus(-D(x_t)) + mean softplus(D(x_t')) + R1 every optim.lazy_reg steps
    L_G = mean softplus(-D(x_t')) + regression_weight · mean (x'_{t+1} - x_{t+1})²

The trained G can be sampled in any number of steps that divides T. The authors' last step, a D that also denoises, is
not included.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion
from ddgan_jax.objectives.base import DiscriminatorFn, Metrics, Model, Pairs, Rows
from ddgan_jax.objectives.ddgan import Ddgan


@dataclasses.dataclass(frozen=True)
class Siddm(Ddgan):
  """The losses of `Ddgan` on marginals, with a regression.

  Attributes:
    regression_weight: weight of the regression.
  """

  regression_weight: float = 1.0
  name = 'siddm'
  can_respace = True
  conditions_on_x_tp1 = False
  extra_noise = 1

  def generator_loss_of_logits(
      self, fake_logits: jax.Array, discriminator_fn: DiscriminatorFn, model: Model, pairs: Pairs, rows: Rows
  ) -> tuple[jax.Array, Metrics]:
    draws = rows.draws
    x_tp1_fake = diffusion.q_step(model.schedule, pairs.x_t_fake, pairs.t, draws.extra_noise[:, 0])
    _, x_tp1 = diffusion.q_sample_pair(model.schedule, rows.x_0, draws.t, draws.noise_t, draws.noise_tp1)
    regression = self.regression_weight * jnp.square(x_tp1_fake - x_tp1).mean()
    return jax.nn.softplus(-fake_logits).mean() + regression, {'regression': regression}
