"""Samples that match a measurement: the closed-form conditional of Gaussian data, and pixels that must not change."""

import functools

import jax
import numpy as np
import pytest

from ddgan_jax import diffusion, sampling
from ddgan_jax.editing import noise_optimization, replacement
from tests.editing.test_editing import CONDITIONAL_MEAN, CONDITIONAL_STD, MASK, gaussian_generator, two_pixels
from tests.test_sampling import fake_generator


@pytest.mark.parametrize('num_timesteps', [1, 2])
def test_inpainting_in_few_steps_samples_the_conditional(num_timesteps):
  schedule, count = diffusion.make_schedule(num_timesteps), 2_000
  x = noise_optimization.inpaint(
      jax.random.key(0), gaussian_generator(schedule), schedule, two_pixels(count), MASK, 2)[:, 0, 1, 0]
  assert abs(float(x.mean()) - CONDITIONAL_MEAN) < 0.03  # -0.2 without the known pixel
  assert abs(float(x.std()) - CONDITIONAL_STD) < 0.02  # 0.5 without it


def test_known_pixels_are_kept_bit_for_bit():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 6, 6, 3), np.uint8)
  x, mask = images.astype(np.float32) / np.float32(127.5) - 1, rng.random((6, 6, 1)) < 0.5
  inpaint = jax.jit(functools.partial(
      noise_optimization.inpaint, jax.random.key(0), fake_generator, diffusion.make_schedule(2), mask=mask,
      latent_dim=5, num_steps=10))
  out, known = np.asarray(inpaint(image=x)), np.broadcast_to(~mask, x.shape)
  np.testing.assert_array_equal(out[known].view(np.uint32), x[known].view(np.uint32))
  np.testing.assert_array_equal(np.asarray(sampling.to_uint8(out))[known], images[known])
  np.testing.assert_array_equal(inpaint(image=np.where(mask, np.nan, x)), out)


def test_super_resolution_keeps_block_means():
  small = np.random.default_rng(0).uniform(-1, 1, (2, 3, 2, 1)).astype(np.float32)
  out = noise_optimization.super_resolve(
      jax.random.key(0), fake_generator, diffusion.make_schedule(2), small, 5, factor=2, num_steps=10)
  assert out.shape == (2, 6, 4, 1)
  np.testing.assert_allclose(replacement.block_means(out, 2), small, atol=1e-6)


def test_a_matching_sample_is_unchanged():
  """The start already has the target and no error is drawn, so optimization changes nothing."""
  schedule, shape = diffusion.make_schedule(2), (2, 4, 4, 1)
  start = sampling.sample(jax.random.key(5), fake_generator, schedule, shape, 5)
  found = noise_optimization.sample_matching(
      jax.random.key(5), fake_generator, schedule, lambda x: 0 * x, np.zeros(shape, np.float32), shape, 5, num_steps=20)
  np.testing.assert_allclose(found, start, atol=1e-5)


def test_vmap_over_keys_matches_a_loop():
  x = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 1)).astype(np.float32)
  inpaint = lambda key: noise_optimization.inpaint(
      key, fake_generator, diffusion.make_schedule(2), x, np.arange(4)[:, None, None] > 1, 5, num_steps=5)
  keys = jax.random.split(jax.random.key(0), 3)
  np.testing.assert_allclose(
      jax.vmap(inpaint)(keys), np.stack([inpaint(key) for key in keys]), rtol=1e-4, atol=1e-4)
