"""Gradient penalties on D, and the steps that have them.

    gamma / 2 · mean_i ||∂D(x_i, t_i, x_{t+1,i}) / ∂x_i||²

on real less noisy neighbours (R1), on generated ones (R2), or both (Mescheder et al., 2018, "Which training methods for
GANs do actually converge?", equations 9 and 10). A lazy penalty is added every `interval` steps, without multiplying it
by `interval`, as in the original DDGAN (paper, appendix C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddgan_jax.config import OptimConfig

METRICS = ('r1_penalty', 'r2_penalty')  # logged only by steps that have the penalty


@dataclasses.dataclass(frozen=True)
class GradientPenalty:
  """Which gradients of D are penalised, how much, and how often.

  Attributes:
    gamma: the weight; 0 is no penalty.
    interval: the penalty is in the steps divisible by this, and so in step 0.
    real, fake: whether R1 and whether R2 is in it.
  """

  gamma: float
  interval: int = 1
  real: bool = True
  fake: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    """The metrics that only steps with the penalty have."""
    return tuple(name for name, present in zip(METRICS, (self.real, self.fake), strict=True) if present)

  def is_due(self, step: int | jax.Array) -> bool | jax.Array:
    """Whether the step that starts from state.step == `step` has the penalty; a tracer only if that depends on one."""
    if self.gamma == 0 or self.interval == 1:
      return self.gamma > 0
    return step % self.interval == 0

  def variants(self, step: int) -> tuple[bool, ...]:
    """The values of `is_due` from `step` on, the one of `step` itself first."""
    first = self.is_due(step)
    return (first,) if self.gamma == 0 or self.interval == 1 else (first, not first)


NONE = GradientPenalty(gamma=0.0, real=False)


def r1(optim: OptimConfig) -> GradientPenalty:
  """DDGAN's: R1, lazy (paper, appendix C)."""
  return GradientPenalty(optim.r1_gamma, optim.lazy_reg)


def penalized_logits(
    discriminator_fn: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, penalty: GradientPenalty
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """D's logits and their penalty, from one forward pass.

  Args:
    discriminator_fn: D as a function of x, [B, H, W, C] → logits [B].
    real, fake: [B, H, W, C] float32.
    penalty: `NONE` computes no gradient.

  Returns:
    real_logits [B], fake_logits [B], and the parts of the weighted penalty by `penalty.names`: their sum is added to
    D's loss.
  """
  def score(x):
    logits = discriminator_fn(x)
    return logits.sum(), logits  # rows are coupled only through the minibatch stddev

  both, parts = [], {}
  for name, x, penalized in zip(METRICS, (real, fake), (penalty.real, penalty.fake), strict=True):
    if penalized:
      gradient, logits = jax.grad(score, has_aux=True)(x)
      parts[name] = 0.5 * penalty.gamma * jnp.square(gradient).sum((1, 2, 3)).mean()
    else:
      _, logits = score(x)
    both.append(logits)
  return *both, parts
