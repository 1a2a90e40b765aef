"""Inpainting, image to image and super-resolution: closed forms for Gaussian data, and pixels that must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddgan_jax import diffusion, sampling
from ddgan_jax.editing import replacement
from tests.test_sampling import fake_generator

# Images of two pixels, jointly Gaussian; the left one is known.
MEAN = np.array([0.1, -0.2])
COVARIANCE = 0.25 * np.array([[1, 0.9], [0.9, 1]])
KNOWN = 0.7
MASK = np.array([False, True]).reshape(1, 2, 1)
CONDITIONAL_MEAN = MEAN[1] + COVARIANCE[1, 0] / COVARIANCE[0, 0] * (KNOWN - MEAN[0])
CONDITIONAL_STD = np.sqrt(COVARIANCE[1, 1] - COVARIANCE[1, 0] ** 2 / COVARIANCE[0, 0])


def denoiser(schedule):
  """p(x_0 | x_{t+1}) of the Gaussian is N(gain x_{t+1} + offset, covariance): [T, 2, 2], [T, 2], [T, 2, 2]."""
  precision = np.linalg.inv(COVARIANCE)
  scale = np.float64(schedule.sqrt_alpha_bar)[1:, None, None]
  std = np.float64(schedule.sigma_bar)[1:, None, None]
  covariance = np.linalg.inv(precision + (scale / std) ** 2 * np.eye(2))
  return covariance * scale / std**2, covariance @ precision @ MEAN, covariance


def gaussian_generator(schedule):
  """The exact G of the Gaussian: its x_0_pred is a sample of p(x_0 | x_{t+1}), computed from z [B, 2]."""
  gain, offset, covariance = denoiser(schedule)
  tables = [jnp.asarray(table, jnp.float32) for table in (gain, offset, np.linalg.cholesky(covariance))]

  def generator_fn(x_tp1, t, z):
    gain, offset, root = (table[t] for table in tables)
    x = jnp.einsum('bij,bj->bi', gain, x_tp1.reshape(-1, 2)) + offset + jnp.einsum('bij,bj->bi', root, z)
    return x.reshape(x_tp1.shape)

  return generator_fn


def two_pixels(count):
  return jnp.broadcast_to(jnp.array([KNOWN, 0], jnp.float32).reshape(1, 1, 2, 1), (count, 1, 2, 1))


def inpainting_moments(schedule, num_resamples):
  """Mean and standard deviation of the unknown pixel: with this G, RePaint is a chain of Gaussians."""
  gain, offset, covariance = denoiser(schedule)
  table = lambda name, i: np.float64(getattr(schedule, name)[i])
  mean, cov = np.zeros(2), np.eye(2)
  for t in range(schedule.num_timesteps - 1, -1, -1):
    weight = table('posterior_coef_x_0', t)
    step = weight * gain[t] + table('posterior_coef_x_tp1', t) * np.eye(2)
    variance = table('posterior_variance', t) * (t > 0)
    for i in range(num_resamples):
      mean = step @ mean + weight * offset[t]
      cov = step @ cov @ step.T + weight**2 * covariance[t] + variance * np.eye(2)
      mean[0] = table('sqrt_alpha_bar', t) * KNOWN
      cov[0, :] = cov[:, 0] = 0
      cov[0, 0] = table('sigma_bar', t) ** 2
      if i < num_resamples - 1:
        mean = table('sqrt_alpha', t + 1) * mean
        cov = (1 - table('beta', t + 1)) * cov + table('beta', t + 1) * np.eye(2)
  return mean[1], np.sqrt(cov[1, 1])


@pytest.mark.parametrize('num_timesteps, num_resamples', [(3, 1), (8, 4)])
def test_inpainting_has_the_moments_of_the_gaussian_chain(num_timesteps, num_resamples):
  schedule, count = diffusion.make_schedule(num_timesteps), 10_000
  x = replacement.inpaint(
      jax.random.key(0), gaussian_generator(schedule), schedule, two_pixels(count), MASK, 2, num_resamples)[:, 0, 1, 0]
  mean, std = inpainting_moments(schedule, num_resamples)
  assert abs(float(x.mean()) - mean) < 5 * std / np.sqrt(count)
  assert abs(float(x.std()) / std - 1) < 5 / np.sqrt(2 * count)


def test_inpainting_in_many_steps_samples_the_conditional():
  schedule, count = diffusion.make_schedule(128), 1_000
  x = replacement.inpaint(
      jax.random.key(0), gaussian_generator(schedule), schedule, two_pixels(count), MASK, 2, 20)[:, 0, 1, 0]
  assert abs(float(x.mean()) - CONDITIONAL_MEAN) < 0.03  # -0.2 without the known pixel
  assert abs(float(x.std()) - CONDITIONAL_STD) < 0.02  # 0.5 without it


@pytest.fixture(scope='module')
def pictures():
  """Four images, as uint8 and as float, and a mask."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 6, 6, 3), np.uint8)
  return images, images.astype(np.float32) / np.float32(127.5) - 1, rng.random((6, 6, 1)) < 0.5


@pytest.mark.parametrize('num_timesteps, num_resamples', [(1, 1), (2, 3)])
def test_known_pixels_are_kept_bit_for_bit(pictures, num_timesteps, num_resamples):
  images, x, mask = pictures
  schedule = diffusion.make_schedule(num_timesteps)
  out = np.asarray(jax.jit(functools.partial(
      replacement.inpaint, generator_fn=fake_generator, schedule=schedule, latent_dim=5, num_resamples=num_resamples))(
          jax.random.key(0), image=x, mask=mask))
  known = np.broadcast_to(~mask, x.shape)
  np.testing.assert_array_equal(out[known].view(np.uint32), x[known].view(np.uint32))
  np.testing.assert_array_equal(np.asarray(sampling.to_uint8(out))[known], images[known])
  assert (out[~known] != x[~known]).all()


def test_masked_pixels_are_ignored(pictures):
  _, x, mask = pictures
  inpaint = functools.partial(
      replacement.inpaint, jax.random.key(0), fake_generator, diffusion.make_schedule(2), mask=mask, latent_dim=5)
  np.testing.assert_array_equal(inpaint(image=np.where(mask, np.nan, x)), inpaint(image=x))


def test_inpainting_without_known_pixels_is_sampling():
  schedule, shape = diffusion.make_schedule(3), (2, 4, 4, 1)
  found = replacement.inpaint(
      jax.random.key(3), fake_generator, schedule, jnp.zeros(shape), jnp.ones((4, 4, 1)), 5, num_resamples=1)
  expected = sampling.sample(jax.random.key(3), fake_generator, schedule, shape, 5)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_forward_noise_is_used_only_between_passes(pictures):
  """The forward noise of a step's last pass, or of its only pass, does not affect the result."""
  _, x, mask = pictures
  schedule, rng = diffusion.make_schedule(2), np.random.default_rng(1)

  def inpaint(num_resamples, unused):
    draw = lambda *shape: np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    steps = 2 * num_resamples
    forward = rng.standard_normal((steps, *x.shape)).astype(np.float32)
    forward[unused] = np.nan
    return replacement.inpaint_given_noise(
        fake_generator, schedule, x, mask, draw(*x.shape), draw(steps, 4, 5), draw(steps, *x.shape),
        draw(steps, *x.shape), forward)

  assert np.isfinite(inpaint(1, slice(None))).all()
  assert np.isfinite(inpaint(3, [2, 5])).all()
  assert not np.isfinite(inpaint(3, [4])).all()


def test_noise_rows_must_be_a_multiple_of_the_steps(pictures):
  _, x, mask = pictures
  with pytest.raises(ValueError, match='has 3 rows; use a multiple of T = 2'):
    replacement.inpaint_given_noise(
        fake_generator, diffusion.make_schedule(2), x, mask, x, np.zeros((3, 4, 5)), *[np.zeros((3, *x.shape))] * 3)


def test_image_to_image_of_a_gaussian():
  """From level 1 the exact G samples p(x_0 | x_1) with x_1 ~ q(x_1 | image)."""
  schedule, count = diffusion.make_schedule(4), 20_000
  image = np.array([0.8, -0.6])
  x = replacement.image_to_image(
      jax.random.key(0), gaussian_generator(schedule), schedule,
      jnp.broadcast_to(jnp.asarray(image, jnp.float32).reshape(1, 1, 2, 1), (count, 1, 2, 1)), 2, from_level=1)
  gain, offset, covariance = (table[0] for table in denoiser(schedule))
  mean = gain @ (schedule.sqrt_alpha_bar[1] * image) + offset
  cov = schedule.sigma_bar[1] ** 2 * gain @ gain.T + covariance
  np.testing.assert_allclose(x.reshape(-1, 2).mean(0), mean, atol=5 * np.sqrt(cov.max() / count))
  np.testing.assert_allclose(np.cov(x.reshape(-1, 2).T), cov, atol=10 * cov.max() / np.sqrt(count))


def test_image_to_image_from_the_last_level_is_sampling():
  schedule, shape = diffusion.make_schedule(3), (2, 4, 4, 1)
  found = replacement.image_to_image(jax.random.key(3), fake_generator, schedule, jnp.zeros(shape), 5, from_level=3)
  x_T, z, noise = sampling.draw_noise(jax.random.key(3), shape, 3, 5)
  expected = sampling.sample_given_noise(fake_generator, schedule, schedule.sigma_bar[3] * x_T, z, noise)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('level', [0, 4])
def test_invalid_levels_are_refused(level):
  with pytest.raises(ValueError, match=f'from_level is {level}; use a value in 1 … 3'):
    replacement.image_to_image(
        jax.random.key(0), fake_generator, diffusion.make_schedule(3), jnp.zeros((1, 4, 4, 1)), 5, level)


@pytest.mark.parametrize('factor, shape', [(2, (3, 4, 2, 3)), (4, (1, 2, 2, 1))])
def test_super_resolution_keeps_block_means(factor, shape):
  small = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
  out = replacement.super_resolve(
      jax.random.key(0), fake_generator, diffusion.make_schedule(3), small, latent_dim=5, factor=factor)
  assert out.shape == (shape[0], factor * shape[1], factor * shape[2], shape[3])
  np.testing.assert_allclose(replacement.block_means(out, factor), small, atol=1e-6)
  assert np.abs(out - replacement.enlarge(small, factor)).max() > 0.1


def test_block_means_match_pillow():
  x = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
  small = np.asarray(Image.fromarray(x).resize((6, 4), Image.Resampling.BOX))
  np.testing.assert_allclose(replacement.block_means(x[..., None], 2)[..., 0], small, atol=1e-6)
  large = np.asarray(Image.fromarray(small).resize((12, 8), Image.Resampling.NEAREST))
  np.testing.assert_array_equal(replacement.enlarge(small[..., None], 2)[..., 0], large)


def test_super_resolution_needs_a_whole_factor():
  noise = np.zeros((2, 1, 5, 4, 1))
  with pytest.raises(ValueError, match=r'has size \(2, 2\); use one that divides \(5, 4\)'):
    replacement.super_resolve_given_noise(
        fake_generator, diffusion.make_schedule(2), np.zeros((1, 2, 2, 1)), noise[0], np.zeros((2, 1, 3)), noise, noise)


def test_vmap_over_keys_matches_a_loop(pictures):
  _, x, mask = pictures
  schedule, keys = diffusion.make_schedule(2), jax.random.split(jax.random.key(0), 3)
  edits = (
      lambda key: replacement.inpaint(key, fake_generator, schedule, x, mask, 5, num_resamples=2),
      lambda key: replacement.image_to_image(key, fake_generator, schedule, x, 5, from_level=1),
      lambda key: replacement.super_resolve(key, fake_generator, schedule, x, 5, factor=2))
  for edit in edits:
    together = jax.jit(jax.vmap(edit))(keys)
    np.testing.assert_allclose(together, np.stack([edit(key) for key in keys]), rtol=1e-5, atol=1e-5)
