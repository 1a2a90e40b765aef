"""Conditions computed from images: their values, their batches, and the same holes in any order."""

import dataclasses

import numpy as np
import pytest

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import conditions, pipeline, sources

RNG = np.random.default_rng(0)
UNIFORMS = RNG.random((500, conditions.NUM_UNIFORMS))


def config(condition, size=8, channels=3, **fields):
  return DataConfig(name='digits', image_size=size, num_channels=channels, condition=condition, **fields)


def images(count=4, size=8, channels=3):
  return RNG.uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def test_low_resolution_is_the_block_mean():
  x = images(2)
  found = conditions.compute(x, config('lowres:4'), UNIFORMS[:2])
  for i in range(2):
    for j in range(2):
      block = x[:, 4 * i:4 * i + 4, 4 * j:4 * j + 4]
      np.testing.assert_allclose(found[:, i, j], block.reshape(2, 16, 3).mean(1), atol=1e-6)
  assert found.shape[1:] == config('lowres:4').condition_shape


def test_grey_is_pillows_luma():
  from PIL import Image

  pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
  found = conditions.compute(pixels[None] / np.float32(127.5) - 1, config('grey'), UNIFORMS[:1])
  expected = np.asarray(Image.fromarray(pixels).convert('L'))
  np.testing.assert_allclose((found[0, ..., 0] + 1) * 127.5, expected, atol=1)


def test_edges_of_a_step_and_of_a_flat_image():
  x = np.full((2, 8, 8, 1), 0.3, np.float32)
  x[1, :, 4:] = -1
  x[1, :, :4] = 1
  flat, step = conditions.compute(x, config('edges', channels=1), UNIFORMS[:2])
  np.testing.assert_array_equal(flat, -1)
  # A vertical step of 2 has a Sobel gradient of 8, of at most sqrt(80).
  np.testing.assert_allclose(step[:, 3:5], 2 * 8 / np.sqrt(80) - 1, atol=1e-6)
  np.testing.assert_array_equal(step[:, [0, 1, 2, 5, 6, 7]], -1)
  # The worst case of any image of -1 and 1.
  worst = conditions.compute(np.sign(images(400, channels=1)), config('edges', channels=1), UNIFORMS[:400])
  assert 0.9 < worst.max() <= 1


@pytest.mark.parametrize('size', [8, 32, 64])
def test_holes_are_neither_empty_nor_the_whole_image(size):
  holes = conditions.holes(UNIFORMS, size)
  shares = holes.mean((1, 2))
  assert shares.min() > 0 and shares.max() < 0.7 and 0.15 < shares.mean() < 0.35
  assert len(np.unique(holes.reshape(500, -1), axis=0)) > 450
  # Every pixel is in some hole, and the masks do not depend on the resolution.
  assert holes.any(0).all()
  coarse = conditions.holes(UNIFORMS, 2 * size).reshape(500, size, 2, size, 2).mean((2, 4))
  assert np.abs(coarse - holes).mean() < 0.6 / size  # only at borders


def test_a_masked_image_keeps_what_is_known():
  x = images(3)
  found = conditions.compute(x, config('mask'), UNIFORMS[:3])
  hole = conditions.holes(UNIFORMS[:3], 8)
  np.testing.assert_array_equal(found[..., 3], np.where(hole, 1, -1))
  np.testing.assert_array_equal(found[..., :3], np.where(hole[..., None], 0, x))


def source():
  return sources.ArraySource(RNG.integers(0, 256, (30, 8, 8, 3), np.uint8))


@pytest.mark.parametrize('condition', ['lowres:2', 'grey', 'mask', 'edges'])
def test_batches_have_the_condition_of_their_flipped_images(condition):
  data, data_config = source(), config(condition, batch_size=12, flip=True)
  batch = pipeline.global_batch(data, data_config, seed=3, step=5)
  plain = pipeline.global_batch(data, dataclasses.replace(data_config, condition='none'), seed=3, step=5)
  np.testing.assert_array_equal(batch['image'], plain['image'])
  assert 'condition' not in plain and batch['condition'].shape == (12, *data_config.condition_shape)
  if condition != 'mask':
    expected = conditions.compute(batch['image'], data_config, UNIFORMS[:12])
    np.testing.assert_array_equal(batch['condition'], expected)
  # The rows of two processes.
  parts = [pipeline.global_batch(data, data_config, 3, 5, pipeline.process_rows(12, i, 2)) for i in range(2)]
  np.testing.assert_array_equal(np.concatenate([part['condition'] for part in parts]), batch['condition'])
  other = pipeline.global_batch(data, data_config, seed=3, step=6)
  assert not np.array_equal(other['condition'], batch['condition'])


def test_stored_conditions_depend_on_the_image_alone():
  data, data_config = source(), config('mask', flip=True)
  both = pipeline.stored_conditions(data, data_config, np.array([7, 2]))
  np.testing.assert_array_equal(both[1:], pipeline.stored_conditions(data, data_config, np.array([2])))
  np.testing.assert_array_equal(both[0, ..., :3] != 0, (both[0, ..., 3:] < 0) & (both[0, ..., :3] != 0))


@pytest.mark.parametrize('fields, message', [
    ({'condition': 'lowres'}, "data.condition is 'lowres'; use 'none', 'lowres:K'"),
    ({'condition': 'lowres:1'}, "data.condition is 'lowres:1'; use"),
    ({'condition': 'grey:2'}, "data.condition is 'grey:2'; use"),
    ({'condition': 'blur'}, "data.condition is 'blur'; use"),
    ({'condition': 'lowres:3'}, 'use a factor that divides data.image_size=8'),
    ({'condition': 'grey', 'channels': 1}, 'use it with data.num_channels=3, not 1'),
])
def test_wrong_conditions(fields, message):
  with pytest.raises(ConfigError, match=message):
    config(**fields)
  with pytest.raises(ConfigError, match="use 'none' with data.name='gaussians25'"):
    DataConfig(name='gaussians25', condition='edges')


def test_pictures():
  x = images(2)
  small = conditions.compute(x, config('lowres:2'), UNIFORMS[:2])
  picture = conditions.picture(small, 8, 3)
  np.testing.assert_array_equal(picture[:, ::2, ::2], conditions.to_uint8(small))
  samples = np.zeros((6, 8, 8, 3), np.uint8)
  rows, columns = conditions.picture_rows(x, small, samples)
  assert columns == 5 and rows.shape == (10, 8, 8, 3)
  np.testing.assert_array_equal(rows[[0, 5]], picture)
  np.testing.assert_array_equal(rows[[4, 9]], conditions.to_uint8(x))
