"""R1, the gradient penalty on D, and the steps that have it.

    gamma / 2 · mean_i ||∂D(x_i, t_i, x_{t+1,i}) / ∂x_i||²

on real less noisy neighbours (Mescheder et al., 2018, "Which training methods for GANs do actually converge?", equation
9). A lazy penalty is in one step of `every` and is not multiplied by it, as in DDGAN (paper, appendix C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddgan_jax.config import OptimConfig

METRIC = 'r1_penalty'  # logged only by steps that have the penalty


@dataclasses.dataclass(frozen=True)
class GradientPenalty:
  """How much D's gradient is penalised, and how often.

  Attributes:
    gamma: the weight; 0 is no penalty.
    every: the penalty is in the steps divisible by this, and so in step 0.
  """

  gamma: float
  every: int = 1

  def is_due(self, step: int | jax.Array) -> bool | jax.Array:
    """Whether the step that starts from state.step == `step` has the penalty; a tracer only if that depends on one."""
    if self.gamma == 0 or self.every == 1:
      return self.gamma > 0
    return step % self.every == 0

  def variants(self, step: int) -> tuple[bool, ...]:
    """The values of `is_due` from `step` on, the one of `step` itself first."""
    first = self.is_due(step)
    return (first,) if self.gamma == 0 or self.every == 1 else (first, not first)


NONE = GradientPenalty(gamma=0.0)


def r1(optim: OptimConfig) -> GradientPenalty:
  """DDGAN's: R1, lazy (paper, appendix C)."""
  return GradientPenalty(optim.r1_gamma, optim.lazy_reg)


def penalized_logits(
    judge: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, gamma: float | None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """D's logits and their penalty, from one forward pass.

  Args:
    judge: D as a function of x, [B, H, W, C] → logits [B].
    real, fake: [B, H, W, C] float32.
    gamma: the weight; None computes no gradient.

  Returns:
    real_logits [B], fake_logits [B], and {`METRIC`: the weighted penalty}, to be added to D's loss; {} without gamma.
  """
  if gamma is None:
    return judge(real), judge(fake), {}

  def score(x):
    logits = judge(x)
    return logits.sum(), logits  # rows are coupled only through the minibatch stddev

  gradient, real_logits = jax.grad(score, has_aux=True)(real)
  return real_logits, judge(fake), {METRIC: 0.5 * gamma * jnp.square(gradient).sum((1, 2, 3)).mean()}
