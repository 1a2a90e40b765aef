"""Gradient penalties on D and their interval.

    gamma / 2 · mean_i ||∂D(x_i, t_i, x_{t+1,i}) / ∂x_i||²

where x_i are real less noisy neighbours (R1), generated ones (R2), or both (Mescheder et al., 2018, "Which training
methods for GANs do actually converge?", equations 9 and 10). A lazy penalty is added every `interval` steps, without
multiplying it by `interval`, as in the original DDGAN (paper, appendix C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ddgan_jax.config import OptimConfig

METRICS = ('r1_penalty', 'r2_penalty')  # only in steps with the penalty


@dataclasses.dataclass(frozen=True)
class GradientPenalty:
  """A penalty on D's gradients: R1, R2 or both.

  Attributes:
    gamma: the weight; 0 disables the penalty.
    interval: the penalty is added in steps divisible by this, beginning with step 0.
    real, fake: whether to add R1, and whether to add R2.
    gamma_final, num_steps: if `gamma_final` is not None, the weight follows a cosine from `gamma` to it.
  """

  gamma: float
  interval: int = 1
  real: bool = True
  fake: bool = False
  gamma_final: float | None = None
  num_steps: int = 1

  def weight(self, step: int | jax.Array) -> float | jax.Array:
    """gamma at state.step == `step`."""
    if self.gamma_final is None:
      return self.gamma
    return optax.cosine_decay_schedule(self.gamma, self.num_steps, alpha=self.gamma_final / self.gamma)(step)

  @property
  def names(self) -> tuple[str, ...]:
    """The metrics of this penalty."""
    return tuple(name for name, present in zip(METRICS, (self.real, self.fake), strict=True) if present)

  def is_due(self, step: int | jax.Array) -> bool | jax.Array:
    """Whether the penalty is due at state.step == `step`. A bool if it does not depend on `step`, even for a tracer."""
    if self.gamma == 0 or self.interval == 1:
      return self.gamma > 0
    return step % self.interval == 0

  def variants(self, step: int) -> tuple[bool, ...]:
    """The distinct values of `is_due` from `step` on, that of `step` first."""
    first = self.is_due(step)
    return (first,) if self.gamma == 0 or self.interval == 1 else (first, not first)


NONE = GradientPenalty(gamma=0.0, real=False)


def r1(optim: OptimConfig, num_steps: int = 1) -> GradientPenalty:
  """The lazy R1 penalty of DDGAN (paper, appendix C); `num_steps` is `Config.schedule_steps`."""
  constant = GradientPenalty(optim.r1_gamma, optim.lazy_reg)
  if optim.r1_gamma_final < 0:
    return constant
  return dataclasses.replace(constant, gamma_final=optim.r1_gamma_final, num_steps=num_steps)


def penalized_logits(
    discriminator_fn: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, penalty: GradientPenalty,
    step: int | jax.Array = 0
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """Computes D's logits and the gradient penalty in one forward pass.

  Args:
    discriminator_fn: D as a function of x, [B, H, W, C] → logits [B].
    real, fake: [B, H, W, C] float32.
    penalty: `NONE` computes no gradient.
    step: training steps done so far, for a weight that changes.

  Returns:
    real_logits [B], fake_logits [B], and the weighted penalties by `penalty.names`, which are added to D's loss.
  """
  def score(x):
    logits = discriminator_fn(x)
    return logits.sum(), logits  # per-row gradients: only the minibatch stddev couples rows

  both, parts = [], {}
  for name, x, penalized in zip(METRICS, (real, fake), (penalty.real, penalty.fake), strict=True):
    if penalized:
      gradient, logits = jax.grad(score, has_aux=True)(x)
      parts[name] = 0.5 * penalty.weight(step) * jnp.square(gradient).sum((1, 2, 3)).mean()
    else:
      _, logits = score(x)
    both.append(logits)
  return *both, parts
