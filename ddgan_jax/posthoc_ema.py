"""Post-hoc EMA: averages of any length, reconstructed after the training (Karras et al., 2024, section 3).

A power-function average with exponent gamma weights the parameters of step τ in proportion to τ^gamma, so its length is
relative to the training so far:

    ema_t = beta_t ema_{t-1} + (1 - beta_t) params_t,    beta_t = (1 - 1/t)^(gamma + 1)
    sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)),    the profile's standard deviation relative to t

Two such averages are kept in training and saved with every checkpoint. Any other profile is approximated by the linear
combination of all saved averages whose profile is closest in the least-squares sense, with weights that sum to 1, so
that parameters that did not change are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIGMAS = (0.05, 0.10)  # of the averages that are kept in training
MAX_SIGMA = 0.28  # the profile is uniform at 0.289


def exponent(sigma_rel: float) -> float:
  """gamma of a relative standard deviation. Raises ValueError outside (0, 0.28]."""
  if not 0 < sigma_rel <= MAX_SIGMA:
    raise ValueError(f'sigma_rel is {sigma_rel}; use a value above 0 and at most {MAX_SIGMA}')
  inverse = sigma_rel**-2
  roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
  return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def update(averages: tuple[Any, ...], params: Any, step: jax.Array) -> tuple[Any, ...]:
  """Updates the averages with parameters after `step` training steps, an int32 scalar of at least 1."""
  def one(average, gamma):
    # 1 - beta, accurate also for millions of steps
    weight = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))
    return jax.tree.map(lambda ema, new: ema + weight * (new - ema), average, params)

  return tuple(one(average, exponent(sigma)) for average, sigma in zip(averages, SIGMAS, strict=True))


def weights(steps: Sequence[int], target_step: int, sigma_rel: float) -> tuple[np.ndarray, float]:
  """The weights of saved averages in the reconstruction of another.

  Args:
    steps: steps of the checkpoints, at least one.
    target_step: the step of the reconstructed average, at least the last of `steps`.
    sigma_rel: its profile.

  Returns:
    [len(steps), len(SIGMAS)] float64, for the averages of each checkpoint; and the L2 error of the reconstructed
    profile, relative to the norm of the requested one.
  """
  t = np.repeat(np.asarray(steps, np.float64), len(SIGMAS))
  gamma = np.tile([exponent(sigma) for sigma in SIGMAS], len(steps))
  gram = _inner(t[:, None], gamma[:, None], t, gamma)
  target = _inner(t, gamma, np.float64(target_step), exponent(sigma_rel))
  # The last row and column are the constraint and its Lagrange multiplier, at the scale of the others.
  ones = np.full((len(t), 1), gram.max())
  system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
  solution = np.linalg.lstsq(system, np.append(target, gram.max()), rcond=1e-13)[0]
  found = solution[:-1]
  norm = _inner(target_step, exponent(sigma_rel), np.float64(target_step), exponent(sigma_rel))
  error = np.sqrt(max(0.0, found @ gram @ found - 2 * found @ target + norm) / norm)
  return found.reshape(len(steps), len(SIGMAS)), float(error)


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
  """The integral over τ of two profiles (gamma + 1) τ^gamma / t^(gamma + 1) on [0, t], up to the smaller t."""
  smaller, larger = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
  gamma_larger = np.where(t_a < t_b, gamma_b, gamma_a)
  return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (smaller / larger) ** gamma_larger / larger
