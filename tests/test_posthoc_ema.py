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
    weights = posthoc_ema.weights(steps, 1600, sigma)
    found = np.einsum('is,isp->p', weights, saved)
    expected = direct(params, posthoc_ema.exponent(sigma))
    assert np.sqrt(np.mean((found - expected) ** 2)) < bound * params.std(), sigma
    assert weights.sum() == pytest.approx(1, abs=1e-6)
  assert posthoc_ema.weights([2, 4], 4, 0.2).sum() == pytest.approx(1, abs=1e-6)  # even if the profile is far off


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
  long = ddgan_jax.load(tmp_path, sigma_rel=0.15).params['dense_0']['kernel']
  assert 0 < np.abs(np.asarray(long) - files[4]['1.dense_0.kernel']).max() < 0.01
  (tmp_path / 'ema_profiles' / '4.npz').unlink()
  shutil.rmtree(tmp_path / 'checkpoints' / '4')
  loop.train_and_evaluate(config, str(tmp_path))
  for name, array in np.load(tmp_path / 'ema_profiles' / '4.npz').items():
    np.testing.assert_array_equal(array, files[4][name])
  with pytest.raises(UserError, match='sigma_rel is 0.5; use a value above 0'):
    ddgan_jax.load(tmp_path, sigma_rel=0.5)
  (tmp_path / 'ema_profiles' / '2.npz').write_bytes(b'no file')
  with pytest.raises(UserError, match='2.npz cannot be read .* delete it to do without'):
    ddgan_jax.load(tmp_path, sigma_rel=0.1)


def test_runs_without_profiles_say_so(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)
  config = run_config('ddgan')
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=1))
  loop.train_and_evaluate(config, str(tmp_path))
  with pytest.raises(UserError, match='has no ema_profiles; train with --config.optim.ema_profiles'):
    ddgan_jax.load(tmp_path, sigma_rel=0.1)
  assert jax.tree.leaves(ddgan_jax.load(tmp_path).params)
