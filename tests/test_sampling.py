"""The sampler against the original's numbers, and the images that a key determines."""

import functools

import jax
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models, sampling, train_state
from ddgan_jax.cli import image_output
from ddgan_jax.interop import pytorch
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.training import results
from tests.support import generator_config, golden, nhwc, quick_config_dict, relative_error, state_dict


def test_golden():
  arrays, options = golden('sampler_T4.npz')
  config = generator_config(options)
  params = pytorch.generator_params(state_dict(arrays['param_names']), config)
  schedule = diffusion.make_schedule(4, beta_min=options['beta_min'], beta_max=options['beta_max'])
  generator_fn = models.generator_fn(models.Generator(config), params, schedule)
  noise = arrays['posterior_noise'].transpose(0, 1, 3, 4, 2)
  out = jax.jit(functools.partial(sampling.sample_given_noise, generator_fn, schedule))(
      nhwc(arrays['x_T']), arrays['z'], noise)
  assert relative_error(out, nhwc(arrays['out'])) < 2e-4


def fake_generator(x_tp1, t, z):
  return 0.5 * x_tp1 + 0.1 * t[:, None, None, None] + z[:, :1, None, None]


def test_order_of_levels_and_noise():
  """Row 0 of the noise belongs to t = T-1, and the last x_0_pred is returned without noise."""
  schedule = diffusion.make_schedule(3)
  rng = np.random.default_rng(0)
  x_T, z, noise = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 4, 1), (3, 2, 5), (3, 2, 4, 4, 1)))
  x = x_T
  for row, t in enumerate((2, 1, 0)):
    levels = np.full(2, t)
    x = diffusion.sample_posterior(schedule, fake_generator(x, levels, z[row]), x, levels, noise[row])
  np.testing.assert_allclose(
      sampling.sample_given_noise(fake_generator, schedule, x_T, z, noise), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('num_timesteps', [1, 2, 8])
def test_any_number_of_steps(num_timesteps):
  schedule = diffusion.make_schedule(num_timesteps)
  calls = []

  def generator_fn(x_tp1, t, z):
    calls.append(t.shape)
    return fake_generator(x_tp1, t, z)

  images = sampling.sample(jax.random.key(0), generator_fn, schedule, (6, 4, 4, 3), 5)
  assert images.shape == (6, 4, 4, 3) and np.isfinite(images).all()
  assert calls == [(6,)]  # traced once: the steps are a loop, not T copies


def test_samples_are_a_function_of_the_key():
  schedule = diffusion.make_schedule(2)
  draw = lambda seed: sampling.sample(jax.random.key(seed), fake_generator, schedule, (2, 4, 4, 1), 3)
  np.testing.assert_array_equal(draw(0), draw(0))
  assert np.abs(draw(0) - draw(1)).max() > 0.1


@pytest.mark.parametrize('draw', ['key', 'each'])
def test_a_trajectory_takes_posterior_steps_to_the_samples(draw, tiny_config):
  generator_fn, schedule = train_state.make_sampler(tiny_config, jax.jit(train_state.create, static_argnums=0)(
      tiny_config).ema_params)
  if draw == 'key':
    key, shape = jax.random.key(1), (3, 8, 8, 1)
    sample, trajectory, arguments = sampling.sample, sampling.trajectory, (key, generator_fn, schedule, shape, 4)
    x_T, z, noise = sampling.draw_noise(key, shape, 2, 4)
  else:
    sample, trajectory = sampling.sample_each, sampling.trajectory_each
    arguments = (0, np.array([5, 2, 7], np.int32), generator_fn, schedule, (8, 8, 1), 4)
    rows = [sampling.draw_noise(jax.random.fold_in(jax.random.key(0), i), (8, 8, 1), 2, 4) for i in (5, 2, 7)]
    x_T, z, noise = (np.stack(part, axis) for part, axis in zip(zip(*rows), (0, 1, 1)))
  steps = jax.jit(lambda: trajectory(*arguments))()
  assert steps.x_t.shape == (3, 3, 8, 8, 1) and steps.predictions.shape == (2, 3, 8, 8, 1)
  images = jax.jit(lambda: sample(*arguments))()
  if draw == 'key':
    np.testing.assert_array_equal(steps.x_t[-1], images)  # bit for bit
  np.testing.assert_allclose(steps.x_t[-1], images, atol=1e-6)
  np.testing.assert_allclose(steps.x_t[0], x_T, atol=1e-6)
  for i, level in enumerate((1, 0)):
    t = np.full(3, level, np.int32)
    np.testing.assert_allclose(steps.predictions[i], generator_fn(steps.x_t[i], t, z[i]), atol=1e-5)
    np.testing.assert_allclose(
        steps.x_t[i + 1],
        diffusion.sample_posterior(schedule, steps.predictions[i], steps.x_t[i], t, noise[i]), atol=1e-5)


def test_to_uint8():
  images = np.array([-1.5, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 1.5], np.float32)
  np.testing.assert_array_equal(sampling.to_uint8(images), np.array([0, 0, 1, 128, 255, 255], np.uint8))
  exact = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(sampling.to_uint8(exact / np.float32(127.5) - 1), exact)


def test_many_images_are_sampled_in_batches(monkeypatch):
  """In one program, in batches as large as their noise allows; each image depends only on its index."""
  schedule, indices = diffusion.make_schedule(2), np.array([5, 0, 3, 8, 1])
  batches = []

  def generator_fn(x_tp1, t, z):
    batches.append(len(t))
    return fake_generator(x_tp1, t, z)

  expected = sampling.sample_each(7, indices, generator_fn, schedule, (4, 4, 1), 3)
  monkeypatch.setattr(sampling, '_MAX_NOISE', 2 * 2 * (16 + 3))
  found = jax.jit(lambda: sampling.sample_in_batches(7, indices, generator_fn, schedule, (4, 4, 1), 3))()
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert batches == [5, 2]


def grid_config(num_timesteps, num_samples, **data):
  """A conditional run of Gaussian diffusion."""
  fields = {**quick_config_dict(**data), 'method': 'gaussian', 'diffusion': {'num_timesteps': num_timesteps}}
  fields['generator'] |= {'num_classes': 10}
  fields['train'] |= {'num_samples': num_samples}
  return config_lib.from_config_dict(fields)


def test_the_grid_of_a_thousand_steps_fits_into_memory():
  """256 images of 16x16: the noise of all their steps is 0.8 GB, and that of one part at most half a GiB.

  XLA keeps up to four arrays of that size at a time.
  """
  config = grid_config(1000, 256, image_size=16, num_channels=3)
  abstract = train_state.abstract_state(config, sharding.replicated(sharding.make_mesh(jax.devices()[:1])))
  compiled = results.make_sample_fn(config, sharding.make_mesh(jax.devices()[:1]), abstract.ema_params)
  assert compilation.memory_bytes(compiled)[1] < 2 * 2**30


def test_a_grid_sampled_in_parts_has_the_same_images(monkeypatch):
  """The images of `ddgan_jax.sample`, with the label of each place in the grid."""
  config = grid_config(8, 23)
  mesh = sharding.make_mesh(jax.devices()[:1])
  abstract = train_state.abstract_state(config, sharding.replicated(mesh)).ema_params
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), abstract)
  label, _ = labels.grid_labels(config.generator, 23)
  run = ddgan_jax.Run(*train_state.make_sampler(config, params), config, 0, params)
  expected = image_output.generate(run, 23, config.seed, label=label).astype(int)
  monkeypatch.setattr(sampling, '_MAX_NOISE', 5 * 8 * (64 + 4))
  found = results.make_sample_fn(config, mesh, abstract)(params)
  assert np.abs(found - expected).max() <= 1  # rounding
  assert len(np.unique(expected[:22].reshape(22, -1), axis=0)) == 22
