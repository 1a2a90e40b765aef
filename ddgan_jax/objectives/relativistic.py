"""Relativistic pairing with R1 and R2 (R3GAN; Huang et al., 2024, "The GAN is dead; long live the GAN!").

D judges how much more real the real neighbour is than the fake one of the same row, which has the same t, x_{t+1} and
label:

    L_D = mean softplus(-(D(x_t) - D(x_t'))) + gamma/2 · mean (‖∂D(x_t)/∂x_t‖² + ‖∂D(x_t')/∂x_t'‖²)
    L_G = mean softplus(-(D(x_t') - D(x_t)))

Both penalties are in every step (optim.lazy_reg=1). Pairs are those of `ddgan`. Both losses depend only on differences
of logits, so D's bias is undetermined.
"""

from __future__ import annotations

import dataclasses

import jax

from ddgan_jax.objectives.base import DiscriminatorFn, Metrics, Model, Pairs, Rows
from ddgan_jax.objectives.ddgan import Ddgan


@dataclasses.dataclass(frozen=True)
class Relativistic(Ddgan):
  """The pairs of `Ddgan` with relativistic losses; `penalty` should be on real and fake images."""

  name = 'relativistic'

  def losses_of_logits(self, real_logits: jax.Array, fake_logits: jax.Array, pairs: Pairs) -> Metrics:
    return {'loss_d_pairing': jax.nn.softplus(fake_logits - real_logits).mean()}

  def generator_loss_of_logits(
      self, fake_logits: jax.Array, discriminator_fn: DiscriminatorFn, model: Model, pairs: Pairs, rows: Rows
  ) -> tuple[jax.Array, Metrics]:
    real_logits = discriminator_fn(pairs.x_t, pairs.t, pairs.x_tp1)
    return jax.nn.softplus(real_logits - fake_logits).mean(), {}
