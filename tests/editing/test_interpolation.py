"""Paths between images: their ends, and the sphere on which the noise stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import diffusion, sampling
from ddgan_jax.editing import interpolation
from tests.test_sampling import fake_generator

SCHEDULE = diffusion.make_schedule(3)
SHAPE = (4, 4, 1)


def test_the_ends_are_the_samples_of_the_two_keys():
  ends = sampling.sample_each(7, np.array([3, 11]), fake_generator, SCHEDULE, SHAPE, 5)
  key_a, key_b = (jax.random.fold_in(jax.random.key(7), number) for number in (3, 11))
  frames = jax.jit(lambda: interpolation.interpolate(key_a, key_b, fake_generator, SCHEDULE, SHAPE, 5, num_frames=5))()
  assert frames.shape == (5, *SHAPE)
  np.testing.assert_allclose(frames[np.array([0, -1])], ends, rtol=1e-4, atol=1e-4)
  assert np.abs(np.diff(frames, axis=0)).max((1, 2, 3)).min() > 0.01


def test_the_ends_with_fixed_posterior_noise_are_samples():
  x_T, z, noise = sampling.draw_noise(jax.random.key(0), (2, *SHAPE), 3, 5)
  fixed = noise[:, :1]
  frames = interpolation.interpolate_given_noise(fake_generator, SCHEDULE, x_T, z, fixed, 4)
  ends = sampling.sample_given_noise(fake_generator, SCHEDULE, x_T, z, jnp.repeat(fixed, 2, axis=1))
  np.testing.assert_allclose(frames[np.array([0, -1])], ends, rtol=1e-4, atol=1e-4)


def test_interpolation_between_images():
  """Each frame is the mixed image, diffused and denoised with the same noise."""
  images = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
  frames = interpolation.interpolate_images(jax.random.key(0), fake_generator, SCHEDULE, images, 5, 2, num_frames=3)
  noise, z, posterior_noise = sampling.draw_noise(jax.random.key(0), SHAPE, 2, 5)
  for frame, image in zip(frames, (images[0], images.mean(0), images[1])):
    x = diffusion.q_sample(SCHEDULE, image[None], np.array([2]), noise)
    expected = sampling.sample_given_noise(fake_generator, SCHEDULE, x, z[:, None], posterior_noise[:, None])
    np.testing.assert_allclose(frame, expected[0], rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match='is 4; use a value in 1 … 3'):
    interpolation.interpolate_images(jax.random.key(0), fake_generator, SCHEDULE, images, 5, 4, num_frames=3)


@pytest.mark.parametrize('shape', [(2,), (3, 5, 2)])
def test_slerp_rotates_at_a_constant_rate(shape):
  a, b = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
  b *= np.linalg.norm(a) / np.linalg.norm(b)
  path = np.stack([interpolation.slerp(a, b, weight) for weight in np.linspace(0, 1, 5)]).reshape(5, -1)
  np.testing.assert_allclose(np.linalg.norm(path, axis=-1), np.linalg.norm(a), rtol=1e-5)
  unit = path / np.linalg.norm(path, axis=-1, keepdims=True)
  np.testing.assert_allclose(
      np.arccos((unit[1:] * unit[:-1]).sum(-1)), np.arccos(unit[0] @ unit[-1]) / 4, rtol=1e-3)
  np.testing.assert_allclose(path[[0, -1]], [a.ravel(), b.ravel()], rtol=1e-5, atol=1e-6)


def test_slerp_of_parallel_or_empty_vectors():
  a = np.array([3.0, 4.0], np.float32)
  for b, expected in ((a, a), (2 * a, 1.25 * a), (-a, 0.5 * a)):
    np.testing.assert_allclose(interpolation.slerp(a, b, 0.25), expected, rtol=1e-5)
  assert interpolation.slerp(np.zeros(0), np.zeros(0), 0.5).shape == (0,)  # nz = 0


def test_interpolation_without_a_latent():
  frames = interpolation.interpolate(
      *jax.random.split(jax.random.key(0)), lambda x, t, z: 0.5 * x, SCHEDULE, SHAPE, 0, num_frames=3)
  assert np.isfinite(frames).all() and frames.shape == (3, *SHAPE)
