"""Robust diffusion by semi-unbalanced optimal transport (RDUOT; Dao et al., 2023, arXiv 2311.17101).

The fake neighbour of each row pays for the distance of G's prediction to its input, so that outliers of the data need
not be generated:

    c_i = cost_weight · sum over pixels and channels of (x_0_pred - x_{t+1})²
    L_D = mean psi(-D(x_t)) + mean psi(D(x_t') - c) + R1 every optim.lazy_reg steps
    L_G = mean (c - D(x_t'))

psi is the convex conjugate of the entropy that relaxes the marginals; like the authors' code, this applies it to both
terms. `identity` gives plain optimal transport.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddgan_jax.objectives.base import DiscriminatorFn, Metrics, Model, Pairs, Rows
from ddgan_jax.objectives.ddgan import Ddgan


def chi_square(u: jax.Array) -> jax.Array:
  """u²/4 + u for u ≥ -2, and its minimum, -1, below."""
  u = jnp.maximum(u, -2)
  return u**2 / 4 + u


PSI: dict[str, Callable[[jax.Array], jax.Array]] = {
    'softplus': jax.nn.softplus, 'kl': jnp.exp, 'chi_square': chi_square, 'identity': lambda u: u}


@dataclasses.dataclass(frozen=True)
class Rduot(Ddgan):
  """The pairs of `Ddgan` with the losses of semi-unbalanced optimal transport.

  Attributes:
    cost_weight: tau. 1e-3 at 32x32, 1e-4 at 64x64 and 1e-7 at 256x256 in the authors' code.
    psi: a key of `PSI`.
  """

  cost_weight: float = 1e-3
  psi: str = 'softplus'
  name = 'rduot'

  def losses_of_logits(self, real_logits: jax.Array, fake_logits: jax.Array, pairs: Pairs) -> Metrics:
    psi = PSI[self.psi]
    return {'loss_d_real': psi(-real_logits).mean(), 'loss_d_fake': psi(fake_logits - self._cost(pairs)).mean()}

  def generator_loss_of_logits(
      self, fake_logits: jax.Array, discriminator_fn: DiscriminatorFn, model: Model, pairs: Pairs, rows: Rows
  ) -> tuple[jax.Array, Metrics]:
    cost = self._cost(pairs)
    return (cost - fake_logits).mean(), {'cost': cost.mean()}

  def _cost(self, pairs: Pairs) -> jax.Array:
    return self.cost_weight * jnp.square(pairs.x_0_pred - pairs.x_tp1).sum((1, 2, 3))
