"""Schedules against the original's numbers, the posterior against Bayes' rule."""

import numpy as np
import pytest

from ddgan_jax import diffusion
from tests.support import golden

NAMES = {
    'betas': 'beta',
    'a_s': 'sqrt_alpha',
    'sigmas': 'sigma',
    'a_s_cum': 'sqrt_alpha_bar',
    'sigmas_cum': 'sigma_bar',
    'posterior_variance': 'posterior_variance',
    'posterior_log_variance_clipped': 'posterior_log_variance',
    'posterior_mean_coef1': 'posterior_coef_x_0',
    'posterior_mean_coef2': 'posterior_coef_x_tp1',
}


@pytest.mark.parametrize('case', range(5))
def test_golden_schedule(case):
  arrays, cases = golden('schedules.npz')
  options = cases[case]
  schedule = diffusion.make_schedule(
      options['num_timesteps'], options['schedule'], options['beta_min'], options['beta_max'])
  assert schedule.num_timesteps == options['num_timesteps']
  for original_name, name in NAMES.items():
    expected = arrays[f'{options["index"]}/{original_name}']
    table = getattr(schedule, name)
    assert table.dtype == np.float32 and table.shape == expected.shape
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name)


def test_pair_has_the_marginal_of_its_noisier_level():
  """x_{t+1}, drawn from x_t, has the mean and variance of q(x_{t+1} | x_0)."""
  schedule = diffusion.make_schedule(4)
  for t in range(4):
    mean = schedule.sqrt_alpha[t + 1] * schedule.sqrt_alpha_bar[t]
    variance = (schedule.sqrt_alpha[t + 1] * schedule.sigma_bar[t]) ** 2 + schedule.sigma[t + 1] ** 2
    np.testing.assert_allclose(mean, schedule.sqrt_alpha_bar[t + 1], rtol=1e-5)
    np.testing.assert_allclose(variance, schedule.sigma_bar[t + 1] ** 2, rtol=1e-5)


@pytest.mark.parametrize('num_timesteps', [1, 2, 4, 8])
def test_posterior_is_bayes_rule(num_timesteps):
  """Mean and variance of q(x_t | x_{t+1}, x_0) ∝ q(x_{t+1} | x_t) q(x_t | x_0), in float64."""
  schedule = diffusion.make_schedule(num_timesteps)
  alpha = 1 - schedule.beta[1:].astype(np.float64)
  alpha_bar = np.concatenate([[1.0], np.cumprod(alpha)])
  rng = np.random.default_rng(0)
  x_0, x_tp1, noise = (rng.standard_normal((num_timesteps, 3, 3, 1)).astype(np.float32) for _ in range(3))
  t = np.arange(num_timesteps)
  found = np.asarray(diffusion.sample_posterior(schedule, x_0, x_tp1, t, noise))
  for i in range(num_timesteps):
    prior_variance, step_variance = 1 - alpha_bar[i], 1 - alpha[i]
    if prior_variance == 0:
      expected = x_0[i]
    else:
      precision = 1 / prior_variance + alpha[i] / step_variance
      weighted = np.sqrt(alpha_bar[i]) * x_0[i] / prior_variance + np.sqrt(alpha[i]) * x_tp1[i] / step_variance
      expected = weighted / precision + np.sqrt(1 / precision) * noise[i]
    np.testing.assert_allclose(found[i], expected, atol=2e-5)


def test_level_zero_is_the_clean_image():
  schedule = diffusion.make_schedule(4)
  rng = np.random.default_rng(0)
  x_0, noise = rng.standard_normal((2, 5, 4, 4, 3)).astype(np.float32)
  np.testing.assert_array_equal(diffusion.q_sample(schedule, x_0, np.zeros(5, np.int32), noise), x_0)


def test_each_row_has_its_own_t():
  schedule = diffusion.make_schedule(4)
  x_0, noise_t, noise_tp1 = np.random.default_rng(0).standard_normal((3, 4, 2, 2, 1)).astype(np.float32)
  t = np.array([3, 0, 2, 1])
  x_t, x_tp1 = diffusion.q_sample_pair(schedule, x_0, t, noise_t, noise_tp1)
  for i in range(4):
    row = slice(i, i + 1)
    one_t, one_tp1 = diffusion.q_sample_pair(schedule, x_0[row], t[row], noise_t[row], noise_tp1[row])
    np.testing.assert_array_equal(x_t[row], one_t)
    np.testing.assert_array_equal(x_tp1[row], one_tp1)


def test_invalid_schedules_are_refused():
  with pytest.raises(ValueError, match='num_timesteps is 0'):
    diffusion.make_schedule(0)
  with pytest.raises(ValueError, match="kind is 'cosine'"):
    diffusion.make_schedule(4, kind='cosine')
