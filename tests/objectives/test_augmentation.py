"""Augmentation of D's inputs: each transformation against NumPy, its gradient, and where the training step uses it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import objectives, train_step
from ddgan_jax.config import ConfigError, checks
from ddgan_jax.objectives import augmentation
from tests.support import quick_config_dict

IMAGES = np.random.default_rng(0).standard_normal((64, 16, 16, 3)).astype(np.float32)
UNIFORMS = np.random.default_rng(1).uniform(size=(64, 7)).astype(np.float32)


def augment(*policy, images=IMAGES, uniforms=UNIFORMS):
  return np.asarray(augmentation.augment(jnp.asarray(images), jnp.asarray(uniforms), policy))


def test_translation_moves_exactly_and_fills_with_zeros():
  moved = augment('translation')
  seen = set()
  for image, found, uniform in zip(IMAGES, moved, UNIFORMS, strict=True):
    dy, dx = (int(np.floor(u * 5)) - 2 for u in uniform[3:5])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    np.testing.assert_array_equal(found, padded[2 + dy:18 + dy, 2 + dx:18 + dx])
    seen.add((dy, dx))
  assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}


def test_cutout_clears_a_square():
  cut = augment('cutout')
  for image, found, uniform in zip(IMAGES, cut, UNIFORMS, strict=True):
    y, x = (int(np.floor(16 * u)) for u in uniform[5:7])
    expected = image.copy()
    expected[max(0, y - 4):y + 4, max(0, x - 4):x + 4] = 0
    np.testing.assert_array_equal(found, expected)


def test_color_is_affine_per_image():
  brightness, saturation, contrast = (UNIFORMS[:, i, None, None, None] for i in range(3))
  x = IMAGES.astype(np.float64) + brightness - 0.5
  grey = x.mean(3, keepdims=True)
  x = grey + 2 * saturation * (x - grey)
  mean = x.mean((1, 2, 3), keepdims=True)
  np.testing.assert_allclose(augment('color'), mean + (0.5 + contrast) * (x - mean), atol=1e-5)


def test_gradient_is_the_transpose():
  """The transformations without colour are linear, so <A x, y> = <x, A^T y>; nothing leaks between rows."""
  policy = ('translation', 'cutout')
  y = np.random.default_rng(2).standard_normal(IMAGES.shape).astype(np.float32)
  _, transpose = jax.vjp(lambda x: augmentation.augment(x, jnp.asarray(UNIFORMS), policy), jnp.asarray(IMAGES))
  left = (augment(*policy) * y).sum((1, 2, 3))
  np.testing.assert_allclose((IMAGES * np.asarray(transpose(y)[0])).sum((1, 2, 3)), left, rtol=1e-4, atol=1e-3)


def run_config(**discriminator):
  fields = quick_config_dict(batch_size=8)
  fields['discriminator'].update(discriminator)
  fields['generator'].update(num_classes=10, label_dropout=0.5)
  return config_lib.from_config_dict(fields)


def test_augmentation_changes_no_other_draw():
  shape = (8, 8, 8, 1)
  plain = train_step.make_setup(run_config()).draws(jax.random.key(0), shape)
  augmented = train_step.make_setup(run_config(augment=('cutout',))).draws(jax.random.key(0), shape)
  for half, other in zip(plain, augmented, strict=True):
    assert half.augmentation is None and other.augmentation.shape == (8, 7)
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), half._replace(dropout_key=None),
        other._replace(dropout_key=None, augmentation=None))
    assert all(jax.tree.leaves(same))
  assert (np.asarray(augmented.d.augmentation) != np.asarray(augmented.g.augmentation)).all()


def test_both_images_of_a_pair_are_transformed_alike(monkeypatch):
  """D receives A(x_t) and A(x_{t+1}); its gradient with respect to x_t is zero under the square."""
  config = run_config(augment=('cutout',))
  setup = train_step.make_setup(config)
  draws = setup.draws(jax.random.key(0), (8, 8, 8, 1)).d
  rows = objectives.Rows(jnp.zeros((8, 8, 8, 1)), draws, jnp.arange(8), None, jnp.int32(0))
  seen = {}

  def discriminator(module, params, x_t, t, x_tp1):
    seen.update(x_t=x_t, x_tp1=x_tp1)
    return x_t.sum((1, 2, 3))

  monkeypatch.setattr('ddgan_jax.models.apply', discriminator)
  x = jnp.ones((8, 8, 8, 1))
  discriminator_fn = setup.model.discriminator_fn({}, rows)
  gradient = jax.grad(lambda x_t: discriminator_fn(x_t, draws.t, 2 * x).sum())(x)
  discriminator_fn(x, draws.t, 2 * x)
  np.testing.assert_array_equal(2 * seen['x_t'], seen['x_tp1'])
  np.testing.assert_array_equal(gradient, seen['x_t'])
  assert 0 < float(seen['x_t'].mean()) < 1


def test_a_d_without_x_tp1_gets_zeros(monkeypatch):
  """Colour does not reach the place of x_{t+1}."""
  setup = train_step.make_setup(run_config(augment=('color', 'cutout')))
  draws = setup.draws(jax.random.key(0), (8, 8, 8, 1)).d
  rows = objectives.Rows(jnp.zeros((8, 8, 8, 1)), draws, jnp.arange(8), None, jnp.int32(0))
  seen = []
  monkeypatch.setattr('ddgan_jax.models.apply', lambda module, params, *inputs: seen.extend(inputs))
  setup.model.discriminator_fn({}, rows)(jnp.ones((8, 8, 8, 1)), draws.t, None)
  np.testing.assert_array_equal(seen[2], np.zeros((8, 8, 8, 1)))


def test_settings_are_checked():
  with pytest.raises(ConfigError, match="^discriminator.augment is 'colour'; use one of 'color', 'translation', 'cut"):
    run_config(augment=('translation', 'colour'))
  with pytest.raises(ConfigError, match=r"^discriminator.augment is \('cutout',\); use \(\) with data.name='gauss"):
    config_lib.from_config_dict({
        'data': {'name': checks.POINTS, 'image_size': 1, 'num_channels': 2, 'batch_size': 8},
        'generator': {'kind': 'mlp'}, 'discriminator': {'kind': 'mlp', 'augment': ('cutout',)}})
  assert run_config(augment=('color,cutout',)).discriminator.augment == ('color', 'cutout')
  gaussian = dataclasses.replace(run_config(augment=('cutout',)), method='gaussian')
  assert train_step.make_setup(gaussian).draws(jax.random.key(0), (8, 8, 8, 1)).d.augmentation is None
