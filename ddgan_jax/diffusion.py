"""The diffusion process: pure functions of a table of coefficients (paper, sections 2 and 3.2).

With T of 1 to 8 large steps, q(x_t | x_{t+1}) is far from Gaussian. The posterior q(x_t | x_{t+1}, x_0) is Gaussian for
any step size, and training and sampling need only that posterior.

Throughout, `t` is the index of the *less* noisy neighbour, int32 in 0 … T-1: the pair is (x_t, x_{t+1}), level 0 is
the clean image and level T is noise. Images are [B, ..., C] float32 in [-1, 1]. This module imports no model.
An argument of the wrong type, shape or range raises TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.utils import checks

__all__ = [
    'Schedule', 'make_schedule', 'q_sample', 'q_sample_pair', 'q_step', 'respace', 'sample_posterior',
    'identity_posterior', 'marginal_posterior', 'x_0_from_noise']

_FIRST_TIME = 1e-3  # s_0: the time grid starts just above 0, as in score SDEs
_BETA_0 = 1e-8  # 1 - beta rounds to 1 in float32, so level 0 is the clean image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
  """Coefficients of the forward process and of its posterior; a pytree of float32 tables.

  Attributes:
    beta: [T+1], variance of each forward step; index 0 is the (vanishing) step to level 0.
    sqrt_alpha: [T+1], sqrt(1 - beta).
    sigma: [T+1], sqrt(beta).
    sqrt_alpha_bar: [T+1], cumulative product of sqrt_alpha: the weight of x_0 in x_t.
    sigma_bar: [T+1], sqrt(1 - sqrt_alpha_bar²): the noise level of x_t.
    posterior_variance: [T], variance of q(x_t | x_{t+1}, x_0); 0 at t = 0.
    posterior_log_variance: [T], its logarithm, at least log(1e-20).
    posterior_coef_x_0: [T], the weight of x_0 in the posterior mean.
    posterior_coef_x_tp1: [T], the weight of x_{t+1} in the posterior mean.
  """

  beta: jax.Array
  sqrt_alpha: jax.Array
  sigma: jax.Array
  sqrt_alpha_bar: jax.Array
  sigma_bar: jax.Array
  posterior_variance: jax.Array
  posterior_log_variance: jax.Array
  posterior_coef_x_0: jax.Array
  posterior_coef_x_tp1: jax.Array

  @property
  def num_timesteps(self) -> int:
    """T, the number of denoising steps."""
    return len(self.posterior_variance)


def make_schedule(num_timesteps: int, kind: str = 'vp', beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
  """Makes the tables of a forward process with T = `num_timesteps` large steps.

  For `vp`, the variance at time s in [1e-3, 1] is that of the variance-preserving SDE (Song et al., 2021, appendix B),

      v(s) = 1 - exp(-s² (beta_max - beta_min) / 2 - s beta_min)

  and for `geometric` it is beta_min (beta_max / beta_min)^s. With s_i = 1e-3 + (1 - 1e-3) i / T,
  beta_i = 1 - (1 - v(s_i)) / (1 - v(s_{i-1})). Betas are computed in float64; the tables are float32.

  Args:
    num_timesteps: T, at least 1.
    kind: `vp` or `geometric`.
    beta_min: above 0 and below beta_max.
    beta_max: below 1 for `geometric`.

  Returns:
    A `Schedule` of NumPy arrays, constants or arguments of a jitted function.
  """
  checks.whole('num_timesteps', num_timesteps, 1)
  if kind not in ('vp', 'geometric'):
    raise ValueError(f"kind is {kind!r}; use 'vp' or 'geometric'")
  if not 0 < beta_min < beta_max:
    raise ValueError(f'beta_min is {beta_min}; use a value above 0 and below beta_max={beta_max}')
  if kind == 'geometric' and beta_max >= 1:
    raise ValueError(f"beta_max is {beta_max}; use a value below 1 with kind='geometric' (the last variance)")
  s = _FIRST_TIME + (1 - _FIRST_TIME) * np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  if kind == 'vp':
    variance = 1 - np.exp(-(s**2) * (beta_max - beta_min) / 2 - s * beta_min)
  else:
    variance = beta_min * (beta_max / beta_min) ** s
  alpha_bar = 1 - variance
  return _from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])


def respace(schedule: Schedule, num_timesteps: int) -> tuple[Schedule, np.ndarray]:
  """Keeps every (T / num_timesteps)-th level of `schedule`: the same forward process in fewer, larger steps.

  This samples a run in fewer steps than it was trained with (Nichol and Dhariwal, 2021, section 4). The
  result equals `make_schedule(num_timesteps, …)` up to rounding, because both time grids have the same ends.

  Args:
    schedule: tables of T steps.
    num_timesteps: a divisor of T.

  Returns:
    The shorter tables, and for each of their indices t the index in `schedule`, [num_timesteps] int32:
    t_long = (t + 1) T / num_timesteps - 1, so that x_{t+1} has the same noise level in both.

  Raises:
    ValueError: `num_timesteps` does not divide T.
    TypeError: `num_timesteps` is not an integer, or `schedule` is not a `Schedule`.
  """
  _check_schedule(schedule)
  checks.whole('num_timesteps', num_timesteps, 1)
  if schedule.num_timesteps % num_timesteps:
    raise ValueError(f'num_timesteps is {num_timesteps}; use a divisor of {schedule.num_timesteps}')
  stride = schedule.num_timesteps // num_timesteps
  alpha_bar = np.cumprod(1 - np.asarray(schedule.beta, np.float64))[::stride]
  t_long = np.arange(1, num_timesteps + 1, dtype=np.int32) * stride - 1
  return _from_betas(1 - alpha_bar[1:] / alpha_bar[:-1]), t_long


def identity_posterior(schedule: Schedule) -> Schedule:
  """The tables for a generator that predicts x_t itself ("direct denoising", an ablation of the paper).

  `sample_posterior` then returns its first argument, bit for bit: the prediction has weight 1, x_{t+1} and the noise
  have weight 0. The forward tables are those of `schedule`.
  """
  zeros = np.zeros_like(schedule.posterior_variance)
  return dataclasses.replace(
      schedule, posterior_variance=zeros, posterior_log_variance=np.full_like(zeros, -np.inf),
      posterior_coef_x_0=np.ones_like(zeros), posterior_coef_x_tp1=zeros)


def marginal_posterior(schedule: Schedule) -> Schedule:
  """The tables for a sampler that draws x_t from q(x_t | x_0), independently of x_{t+1}, as in UFOGen.

  The forward tables are those of `schedule`.
  """
  sqrt_alpha_bar, variance = schedule.sqrt_alpha_bar[:-1], schedule.sigma_bar[:-1] ** 2
  return dataclasses.replace(
      schedule, posterior_variance=variance, posterior_log_variance=np.log(np.maximum(variance, np.float32(1e-20))),
      posterior_coef_x_0=sqrt_alpha_bar, posterior_coef_x_tp1=np.zeros_like(sqrt_alpha_bar))


def _from_betas(later_betas: np.ndarray) -> Schedule:
  """All tables from beta_1 … beta_T, [T] float64."""
  beta = np.concatenate([[_BETA_0], later_betas]).astype(np.float32)
  one = np.float32(1)
  sqrt_alpha = np.sqrt(one - beta)
  sqrt_alpha_bar = np.cumprod(sqrt_alpha, dtype=np.float32)

  posterior_beta = beta[1:]
  alpha = one - posterior_beta
  alpha_bar = np.cumprod(alpha, dtype=np.float32)
  alpha_bar_prev = np.concatenate([[one], alpha_bar[:-1]])
  posterior_variance = posterior_beta * (one - alpha_bar_prev) / (one - alpha_bar)
  return Schedule(
      beta=beta,
      sqrt_alpha=sqrt_alpha,
      sigma=np.sqrt(beta),
      sqrt_alpha_bar=sqrt_alpha_bar,
      sigma_bar=np.sqrt(one - sqrt_alpha_bar**2),
      posterior_variance=posterior_variance,
      posterior_log_variance=np.log(np.maximum(posterior_variance, np.float32(1e-20))),
      posterior_coef_x_0=posterior_beta * np.sqrt(alpha_bar_prev) / (one - alpha_bar),
      posterior_coef_x_tp1=(one - alpha_bar_prev) * np.sqrt(alpha) / (one - alpha_bar),
  )


def _check_schedule(schedule: Schedule) -> None:
  checks.instance('schedule', schedule, Schedule, 'from make_schedule')


def _check(schedule: Schedule, t: jax.Array, below: int, **images: jax.Array) -> None:
  """Checks the arguments of the functions below.

  Args:
    schedule, t: the arguments; t is in 0 … T - below.
    below: 0 or 1.
    **images: the arrays by name; the others broadcast to the shape of the first.
  """
  _check_schedule(schedule)
  (first, x), *others = images.items()
  checks.floats(first, x)
  checks.integers('t', t)
  if t.shape not in ((), x.shape[:1]):  # a scalar inside vmap
    raise ValueError(f't has shape {list(t.shape)}; use {list(x.shape[:1])}, one index for each row of {first}')
  checks.values('t', t, 0, schedule.num_timesteps - below, 'T - 1' if below else 'T')
  for name, other in others:
    checks.floats(name, other)
    checks.broadcasts(name, other, first, x.shape)


def _extract(table: jax.Array, t: jax.Array, x: jax.Array) -> jax.Array:
  """`table[t]`, shaped to multiply `x`: [B] becomes [B, 1, …, 1]."""
  return jnp.asarray(table)[t].reshape(t.shape + (1,) * (x.ndim - t.ndim))


def q_sample(schedule: Schedule, x_0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
  """Samples q(x_t | x_0) = N(sqrt_alpha_bar[t] x_0, sigma_bar[t]² I) (paper, section 2).

  Args:
    x_0: [B, ...] float32, clean images in [-1, 1].
    t: [B] int32 in 0 … T, the level of x_t.
    noise: like x_0, standard normal.

  Returns:
    x_t, like x_0.
  """
  _check(schedule, t, 0, x_0=x_0, noise=noise)
  return _extract(schedule.sqrt_alpha_bar, t, x_0) * x_0 + _extract(schedule.sigma_bar, t, x_0) * noise


def q_sample_pair(
    schedule: Schedule, x_0: jax.Array, t: jax.Array, noise_t: jax.Array, noise_tp1: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Samples neighbours (x_t, x_{t+1}) from q(x_t | x_0) q(x_{t+1} | x_t): the real pair for D (paper, section 2).

  Args:
    x_0: [B, ...] float32, clean images in [-1, 1].
    t: [B] int32 in 0 … T-1, the less noisy level.
    noise_t: like x_0, standard normal, for x_t.
    noise_tp1: like x_0, standard normal, for the step from x_t to x_{t+1}.

  Returns:
    (x_t, x_tp1), each like x_0.
  """
  _check(schedule, t, 1, x_0=x_0, noise_t=noise_t, noise_tp1=noise_tp1)
  x_t = q_sample(schedule, x_0, t, noise_t)
  return x_t, q_step(schedule, x_t, t, noise_tp1)


def q_step(schedule: Schedule, x_t: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
  """Samples q(x_{t+1} | x_t) = N(sqrt_alpha[t+1] x_t, sigma[t+1]² I), one Markov step (paper, section 2).

  Args:
    x_t: [B, ...] float32, the less noisy neighbour.
    t: [B] int32 in 0 … T-1, its level.
    noise: like x_t, standard normal.

  Returns:
    x_{t+1}, like x_t.
  """
  _check(schedule, t, 1, x_t=x_t, noise=noise)
  return _extract(schedule.sqrt_alpha, t + 1, x_t) * x_t + _extract(schedule.sigma, t + 1, x_t) * noise


def x_0_from_noise(schedule: Schedule, x_tp1: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
  """Solves `q_sample` for x_0, given x_{t+1} and its noise.

      x_0 = (x_{t+1} - sigma_bar[t+1] noise) / sqrt_alpha_bar[t+1]        (Ho et al., 2020, section 3.2)

  Args:
    x_tp1: [B, ...] float32, the noisier neighbour.
    t: [B] int32 in 0 … T-1.
    noise: like x_tp1, usually predicted by a generator.

  Returns:
    x_0, like x_tp1.
  """
  _check(schedule, t, 1, x_tp1=x_tp1, noise=noise)
  return (x_tp1 - _extract(schedule.sigma_bar, t + 1, x_tp1) * noise) / _extract(schedule.sqrt_alpha_bar, t + 1, x_tp1)


def sample_posterior(
    schedule: Schedule, x_0: jax.Array, x_tp1: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
  """Samples the posterior q(x_t | x_{t+1}, x_0), Gaussian for any step size (paper, section 3.2).

      x_t = posterior_coef_x_0[t] x_0 + posterior_coef_x_tp1[t] x_{t+1} + [t > 0] sqrt(posterior_variance[t]) noise

  At t = 0 it returns x_0.

  Args:
    x_0: [B, ...] float32, the clean image or the generator's prediction.
    x_tp1: like x_0, the noisier neighbour.
    t: [B] int32 in 0 … T-1, the level of x_t.
    noise: like x_0, standard normal; not used where t = 0.

  Returns:
    x_t, like x_0.
  """
  _check(schedule, t, 1, x_0=x_0, x_tp1=x_tp1, noise=noise)
  mean = _extract(schedule.posterior_coef_x_0, t, x_0) * x_0 + _extract(schedule.posterior_coef_x_tp1, t, x_0) * x_tp1
  std = jnp.where(t > 0, jnp.exp(0.5 * jnp.asarray(schedule.posterior_log_variance)[t]), 0.0)
  return mean + std.reshape(t.shape + (1,) * (x_0.ndim - t.ndim)) * noise


def __dir__() -> list[str]:
  return __all__
