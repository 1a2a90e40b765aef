"""Initial weights: drawn together, with the right spread, all different, and a function of the seed."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import train_state
from ddgan_jax.models import initializers


class TwoLayers(nn.Module):
  """Two layers, whose kernels would be proportional if drawn from the same key."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(64, kernel_init=initializers.default_init(), name='first')(x)
    return nn.Dense(64, kernel_init=initializers.default_init(0.1), name='second')(x)


def kernels(key, draw):
  params = draw(key, lambda key: TwoLayers().init(key, jnp.zeros((1, 64))))['params']
  return [np.asarray(params[name]['kernel']) for name in ('first', 'second')]


def test_the_spread_matches_flax():
  """That of variance scaling and of Flax's initializer, whether drawn together or one by one."""
  expected = [np.asarray(nn.initializers.variance_scaling(scale, 'fan_avg', 'uniform')(jax.random.key(1), (64, 64)))
              for scale in (1.0, 0.1)]
  for draw in (initializers.draw, lambda key, init: init(key)):
    found = kernels(jax.random.key(0), draw)
    for kernel, flax_kernel, scale in zip(found, expected, (1.0, 0.1)):
      bound = math.sqrt(6 * scale / 128)
      assert 0.99 * bound < np.abs(kernel).max() <= bound
      np.testing.assert_allclose(kernel.std(), flax_kernel.std(), rtol=0.03)
      assert abs(kernel.mean()) < 4 * bound / math.sqrt(3) / 64
    assert abs(np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]) < 0.06
  conv = initializers.default_init(0.0)(jax.random.key(0), (3, 3, 8, 16))
  np.testing.assert_allclose(np.abs(conv).max(), math.sqrt(6e-10 / (9 * 24)), rtol=0.01)


def test_kernels_are_a_function_of_the_seed():
  first, repeated, other = (kernels(jax.random.key(seed), initializers.draw)[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, repeated)
  assert np.mean(first == other) < 0.01


def test_no_two_arrays_of_a_run_are_equal(tiny_config):
  state = jax.jit(lambda: train_state.create(tiny_config))()
  arrays = [np.asarray(leaf).ravel()[:8] for leaf in jax.tree.leaves((state.g_params, state.d_params)) if leaf.ndim > 1]
  scaled = {tuple(np.round(array / np.abs(array).max(), 4)) for array in arrays}
  assert len(scaled) == len(arrays) > 20
