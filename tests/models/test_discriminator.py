"""Both discriminators against the original's numbers, and the groups of the minibatch stddev."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import models
from ddgan_jax.config import ConfigError, DiscriminatorConfig, recipes
from ddgan_jax.interop import pytorch
from ddgan_jax.models.discriminator import leaky_relu, minibatch_stddev
from ddgan_jax.parallel import compilation
from ddgan_jax.train_state import count_parameters
from tests.support import golden, nhwc, relative_error, state_dict


def make_config(options):
  fields = ('kind', 'image_size', 'num_channels', 'ngf', 't_emb_dim')
  return DiscriminatorConfig(**{field: options[field] for field in fields})


@pytest.mark.parametrize('kind', ['small', 'large'])
def test_golden(kind):
  """Logits, input gradient and its mean square. The original groups strided rows, this project neighbouring ones."""
  arrays, options = golden(f'discriminator_{kind}.npz')
  config = make_config(options)
  tensors = state_dict(arrays['param_names'])
  params = pytorch.discriminator_params(tensors, config)
  exported = pytorch.discriminator_state_dict(params, config)
  assert list(exported) == list(tensors)
  jax.tree.map(np.testing.assert_array_equal, exported, tensors)

  batch = len(arrays['t'])
  order = np.arange(batch).reshape(4, batch // 4).T.ravel()
  undo = np.argsort(order)

  @compilation.jit
  def run(x):
    def summed(x):
      logits = models.Discriminator(config).apply(
          {'params': params}, x, arrays['t'][order], nhwc(arrays['x_t'])[order])
      return logits.sum(), logits

    gradient, logits = jax.grad(summed, has_aux=True)(x)
    return logits, gradient

  logits, gradient = (np.asarray(a)[undo] for a in run(nhwc(arrays['x'])[order]))
  assert logits.shape == (batch,)
  assert relative_error(logits, arrays['out'][:, 0]) < 1e-4
  assert relative_error(gradient, nhwc(arrays['grad_x'])) < 1e-4
  mean_square = np.square(gradient).sum((1, 2, 3)).mean()
  assert mean_square == pytest.approx(float(arrays['r1_mean_sq_norm']), rel=1e-4)


@pytest.mark.parametrize('recipe, expected', [('cifar10', 12_741_633), ('celebahq_256', 27_737_217)])
def test_parameter_counts(recipe, expected):
  config = config_lib.from_config_dict(recipes.load(recipe)).discriminator
  x = jnp.zeros((1, config.image_size, config.image_size, 3))
  shapes = jax.eval_shape(models.Discriminator(config).init, jax.random.key(0), x, jnp.zeros(1, jnp.int32), x)
  assert count_parameters(shapes) == expected


def test_stddev_groups_are_neighbouring_rows():
  x = np.random.default_rng(0).standard_normal((8, 2, 2, 3)).astype(np.float32)
  out = np.asarray(minibatch_stddev(x, 4))
  np.testing.assert_array_equal(out[..., :3], x)
  for first in (0, 4):
    expected = np.sqrt(x[first:first + 4].var(axis=0) + 1e-8).mean()
    np.testing.assert_allclose(out[first:first + 4, ..., 3], expected, rtol=1e-5)


def test_stddev_needs_whole_groups():
  assert minibatch_stddev(jnp.zeros((2, 1, 1, 1)), 4).shape == (2, 1, 1, 2)
  with pytest.raises(ConfigError, match='data.batch_size is 6; use a multiple of 4'):
    minibatch_stddev(jnp.zeros((6, 1, 1, 1)), 4)


def test_leaky_relu_has_torchs_slope_at_zero():
  assert jax.grad(leaky_relu)(0.0) == pytest.approx(0.2)
  np.testing.assert_allclose(leaky_relu(jnp.array([-1.0, 2.0])), [-0.2, 2.0])


def test_bfloat16_stays_close():
  arrays, options = golden('discriminator_small.npz')
  config = make_config(options)
  params = pytorch.discriminator_params(state_dict(arrays['param_names']), config)
  args = {'params': params}, nhwc(arrays['x']), arrays['t'], nhwc(arrays['x_t'])
  full = jax.jit(models.Discriminator(config).apply)(*args)
  half = jax.jit(models.Discriminator(config, jnp.bfloat16).apply)(*args)
  assert half.dtype == jnp.float32
  assert np.linalg.norm(half - full) / np.linalg.norm(full) < 0.05
