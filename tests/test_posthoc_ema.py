"""Post-hoc EMA: the profiles against direct sums, and reconstruction from the files of a run."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import posthoc_ema
from ddgan_jax.config import UserError
from ddgan_jax.reporting import tensorboard
from ddgan_jax.training import loop
from tests.objectives.test_successors import run_config


def direct(params, gamma):
  """The average of params [t, …] with weights proportional to the integral of τ^gamma over each step."""
  edges = np.arange(len(params) + 1.0)
  weight = np.diff((edges / len(params)) ** (gamma + 1))
  return np.tensordot(weight, params, 1)


def density(t, sigma):
  """The profile of a length at step t, on a fine grid of [0, 1600]."""
  tau, gamma = (np.arange(160_000) + 0.5) / 100, posthoc_ema.exponent(sigma)
  return np.where(tau < t, (tau / t) ** gamma, 0) * (gamma + 1) / t


def test_exponents():
  for sigma in (0.05, 0.1, 0.25):
    gamma = posthoc_ema.exponent(sigma)
    # Mean and variance of the density (gamma + 1) τ^gamma on [0, 1].
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert np.sqrt(square - mean**2) == pytest.approx(sigma, rel=1e-6)
  for sigma in (0.0, 0.3):
    with pytest.raises(ValueError, match=f'sigma_rel is {sigma}; use a value above 0 and at most 0.28'):
      posthoc_ema.exponent(sigma)


def test_updates_follow_the_power_function():
  """After each step, beta_t = (1 - 1/t)^(gamma + 1) weights step τ by (τ^(gamma+1) - (τ-1)^(gamma+1)) / t^(gamma+1)."""
  params = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
  averages = (jnp.zeros(3),) * len(posthoc_ema.SIGMAS)
  for i, new in enumerate(params):
    averages = posthoc_ema.update(averages, jnp.asarray(new), jnp.int32(i + 1))
  for average, sigma in zip(averages, posthoc_ema.SIGMAS, strict=True):
    np.testing.assert_allclose(average, direct(params, posthoc_ema.exponent(sigma)), atol=1e-5)


def test_reconstruction():
  """Exact for the saved profiles; within 2% of the spread for lengths in between and beyond, from 16 checkpoints."""
  params = np.cumsum(np.random.default_rng(1).standard_normal((1600, 50)), axis=0) / 40  # a random walk
  steps = np.arange(100, 1601, 100)
  saved = [[direct(params[:t], posthoc_ema.exponent(sigma)) for sigma in posthoc_ema.SIGMAS] for t in steps]
  for sigma, bound in ((0.05, 1e-6), (0.1, 1e-6), (0.07, 0.02), (0.15, 0.02), (0.2, 0.02)):
    weights, error = posthoc_ema.weights(steps, 1600, sigma)
    found = np.einsum('is,isp->p', weights, saved)
    expected = direct(params, posthoc_ema.exponent(sigma))
    assert np.sqrt(np.mean((found - expected) ** 2)) < bound * params.std(), sigma
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    # The error of the profile, by numerical integration of the saved and the requested densities.
    combined = sum(
        weights[i, j] * density(t, saved_sigma) for i, t in enumerate(steps)
        for j, saved_sigma in enumerate(posthoc_ema.SIGMAS))
    wanted = density(1600, sigma)
    assert error == pytest.approx(np.linalg.norm(combined - wanted) / np.linalg.norm(wanted), abs=2e-3)
  weights, error = posthoc_ema.weights([2, 4], 4, 0.2)
  assert weights.sum() == pytest.approx(1, abs=1e-6) and error > 0.2


def test_updates_are_accurate_after_millions_of_steps():
  for step in (400_000, 20_000_000):
    (average, _) = posthoc_ema.update((jnp.float32(0), jnp.float32(0)), jnp.float32(1), jnp.int32(step))
    expected = 1 - (1 - 1 / step) ** (posthoc_ema.exponent(posthoc_ema.SIGMAS[0]) + 1)
    assert float(average) == pytest.approx(expected, rel=1e-5)


def test_a_run_saves_profiles_and_loads_any_length(tmp_path, monkeypatch):
  """Checkpoints at steps 2 and 4: the profiles of step 4 are those of its state, and resuming keeps them."""
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  config = run_config('ddgan')
  config = dataclasses.replace(
      config, optim=dataclasses.replace(config.optim, ema_profiles=True),
      train=dataclasses.replace(config.train, num_steps=4, checkpoint_every=2))
  loop.train_and_evaluate(config, str(tmp_path))
  files = {int(path.stem): dict(np.load(path)) for path in (tmp_path / 'ema_profiles').iterdir()}
  assert sorted(files) == [2, 4]
  for i, sigma in enumerate(posthoc_ema.SIGMAS):
    run = ddgan_jax.load(tmp_path, sigma_rel=sigma)
    np.testing.assert_allclose(run.params['dense_0']['kernel'], files[4][f'{i}.dense_0.kernel'], rtol=1e-4, atol=1e-6)
  weights, _ = posthoc_ema.weights([2, 4], 4, 0.09)
  expected = sum(weights[i, j] * np.float64(files[step][f'{j}.dense_0.kernel'])
                 for i, step in enumerate((2, 4)) for j in range(2))
  np.testing.assert_allclose(ddgan_jax.load(tmp_path, sigma_rel=0.09).params['dense_0']['kernel'], expected, rtol=1e-5)
  assert ddgan_jax.load(tmp_path, step=2, sigma_rel=0.1).step == 2
  with pytest.raises(UserError, match='step is 3; use one of 2, 4'):
    ddgan_jax.load(tmp_path, step=3, sigma_rel=0.1)
  with pytest.raises(UserError, match='sigma_rel is 0.25, whose profile the averages of 2 checkpoints fit only within'):
    ddgan_jax.load(tmp_path, sigma_rel=0.25)
  with pytest.raises(TypeError, match="sigma_rel is '0.1'"):
    ddgan_jax.load(tmp_path, sigma_rel='0.1')
  # Of an interrupted save only the checkpoint is there; files of later steps are from another course of the run.
  (tmp_path / 'ema_profiles' / '2.npz').unlink()
  (tmp_path / 'ema_profiles' / '9.npz').write_bytes(b'')
  shutil.rmtree(tmp_path / 'checkpoints' / '4')
  loop.train_and_evaluate(config, str(tmp_path))
  for step in (2, 4):
    for name, array in np.load(tmp_path / 'ema_profiles' / f'{step}.npz').items():
      np.testing.assert_array_equal(array, files[step][name])
  assert not (tmp_path / 'ema_profiles' / '9.npz').exists()
  with pytest.raises(UserError, match='sigma_rel is 0.5; use a value above 0'):
    ddgan_jax.load(tmp_path, sigma_rel=0.5)
  (tmp_path / 'ema_profiles' / '2.npz').write_bytes(b'no file')
  with pytest.raises(UserError, match='2.npz cannot be read .* delete it to reconstruct'):
    ddgan_jax.load(tmp_path, sigma_rel=0.1)


def test_runs_without_profiles_say_so(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)
  config = run_config('ddgan')
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=1))
  loop.train_and_evaluate(config, str(tmp_path))
  with pytest.raises(UserError, match='has no ema_profiles; train with --config.optim.ema_profiles'):
    ddgan_jax.load(tmp_path, sigma_rel=0.1)
  assert jax.tree.leaves(ddgan_jax.load(tmp_path).params)
