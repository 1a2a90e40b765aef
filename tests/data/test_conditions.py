"""Conditions, computed from images or paired with them: their values, their batches, and data that do not match."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import conditions, pipeline, sources
from ddgan_jax.data.readers import DataError

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


def test_stored_conditions_depend_on_the_image_and_its_number():
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
  picture = conditions.picture(small, config('lowres:2'))
  np.testing.assert_array_equal(picture[:, ::2, ::2], conditions.to_uint8(small))
  samples = np.zeros((6, 8, 8, 3), np.uint8)
  rows, heads = conditions.picture_rows(config('lowres:2'), small, samples, truth=conditions.to_uint8(x))
  assert heads == {'condition': 1, 'samples': 3, 'truth': 1} and rows.shape == (10, 8, 8, 3)
  np.testing.assert_array_equal(rows[[0, 5]], picture)
  np.testing.assert_array_equal(rows[[4, 9]], conditions.to_uint8(x))
  # Of a masked image of two channels, the first.
  values = images(1, channels=2)
  data_config = DataConfig(
      name='npz', path='x.npz', image_size=8, num_channels=2, value_range=(-1.0, 1.0), condition='mask')
  masked = conditions.compute(values, data_config, UNIFORMS[:1])
  np.testing.assert_array_equal(
      conditions.picture(masked, data_config), conditions.to_uint8(masked[..., :1]))


PHOTOS = RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)
SKETCHES = RNG.integers(0, 256, (6, 4, 4), np.uint8)
NAMES = ('cat/a-2', 'cat/a', 'cat/b', 'dog/a', 'dog/c.d', 'dog/e')


@pytest.fixture
def pairs(tmp_path):
  """Folders of photos and sketches with other extensions, and the config of the pairs."""
  for folder, ending, images_ in (('photos', 'png', PHOTOS), ('sketches', 'bmp', SKETCHES)):
    for name, image in zip(NAMES, images_):
      path = tmp_path / folder / f'{name}.{ending}'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
  return DataConfig(
      name='folder', path=str(tmp_path / 'photos'), image_size=8, cache_dir=str(tmp_path / 'cache'), flip=True,
      batch_size=12, condition='pairs', condition_path=str(tmp_path / 'sketches'), pair_size=4, pair_channels=1)


def load(data_config):
  return sources.load_source(data_config, log=lambda text: None)


def check_pairs(data_config):
  """Each image of a batch has its sketch, flipped with it."""
  batch = pipeline.global_batch(load(data_config), data_config, seed=1, step=0)
  scaled = [np.float32(2) * each.astype(np.float32) / 255 - 1 for each in (PHOTOS, SKETCHES[..., None])]
  seen = []
  for image, condition in zip(batch['image'], batch['condition'], strict=True):
    flipped = [np.abs(scaled[0][:, :, ::step] - image).max((1, 2, 3)).argmin() for step in (1, -1)]
    which = [(i, step) for i, step in zip(flipped, (1, -1)) if np.abs(scaled[0][i, :, ::step] - image).max() < 1e-5]
    (i, step), = which
    np.testing.assert_allclose(condition, scaled[1][i, :, ::step], atol=1e-6)
    seen.append((i, step))
  assert {i for i, _ in seen} == set(range(6)) and {step for _, step in seen} == {1, -1}


@pytest.mark.parametrize('cache', ['array', 'none'])
def test_pairs_of_folders(pairs, cache):
  data_config = dataclasses.replace(pairs, cache=cache)
  check_pairs(data_config)
  source_ = load(data_config)
  assert source_.class_names == ('cat', 'dog') and list(source_.labels) == [0, 0, 0, 1, 1, 1]
  stored = pipeline.stored_conditions(source_, data_config, np.array([4, 1]))
  np.testing.assert_allclose(stored[..., 0], SKETCHES[[4, 1]] / 127.5 - 1, atol=1e-6)


def test_pairs_of_a_folder_and_a_zip_and_of_arrays(pairs, tmp_path):
  shutil.make_archive(str(tmp_path / 'sketches'), 'zip', tmp_path / 'sketches')
  check_pairs(dataclasses.replace(pairs, condition_path=str(tmp_path / 'sketches.zip')))
  np.savez(tmp_path / 'both.npz', images=PHOTOS, conditions=SKETCHES, labels=np.arange(6))
  np.savez(tmp_path / 'photos.npz', images=PHOTOS)
  np.savez(tmp_path / 'conditions.npz', conditions=SKETCHES)
  for path, other in (('both.npz', ''), ('photos.npz', 'conditions.npz')):
    data_config = dataclasses.replace(
        pairs, name='npz', path=str(tmp_path / path), condition_path=other and str(tmp_path / other))
    check_pairs(data_config)
  # Arrays of the same size in one file are prepared separately.
  np.savez(tmp_path / 'same.npz', images=PHOTOS, conditions=255 - PHOTOS)
  data_config = dataclasses.replace(
      pairs, name='npz', path=str(tmp_path / 'same.npz'), condition_path='', pair_size=0, pair_channels=3)
  batch = pipeline.global_batch(load(data_config), data_config, seed=1, step=0)
  np.testing.assert_allclose(batch['condition'], -batch['image'], atol=1e-6)


def test_the_checksum_covers_the_conditions(pairs, tmp_path):
  before = load(pairs).checksum
  Image.fromarray(255 - SKETCHES[0]).save(tmp_path / 'sketches' / 'cat' / 'a.bmp')
  after = load(pairs).checksum
  assert before != after and before[:16] == after[:16]


@pytest.mark.parametrize('change, message', [
    (lambda folder: (folder / 'sketches/cat/b.bmp').unlink(),
     'data.condition_path: .*sketches has no image named cat/b; use the same names in both'),
    (lambda folder: (folder / 'photos/dog/e.png').unlink(), 'photos has no image named dog/e; use the same names'),
    (lambda folder: [(folder / f'sketches/{name}.bmp').unlink() for name in NAMES[1:]],
     'no image named cat/a, cat/b, dog/a and 2 more; use'),
    (lambda folder: [shutil.copy(folder / f / f'cat/a.{e}', folder / f / f'cat/a.{o}') for f, e, o in (
        ('photos', 'png', 'jpg'), ('sketches', 'bmp', 'png'))], 'has several images named cat/a; rename them'),
    (lambda folder: shutil.rmtree(folder / 'sketches'), 'data.condition_path: .*sketches does not exist'),
    (lambda folder: Image.new('L', (5, 5)).save(folder / 'sketches/cat/b.bmp'), 'cat/b.bmp is 5x5, which data.resize='),
])
def test_images_that_do_not_match(pairs, tmp_path, change, message):
  change(tmp_path)
  with pytest.raises(DataError, match=message):
    load(pairs)


def test_arrays_that_do_not_match(pairs, tmp_path):
  np.savez(tmp_path / 'x.npz', images=PHOTOS, conditions=SKETCHES[:5])
  np.savez(tmp_path / 'y.npz', images=PHOTOS)
  data_config = dataclasses.replace(pairs, name='npz', path=str(tmp_path / 'x.npz'), condition_path='')
  with pytest.raises(DataError, match='has 5 conditions for 6 images; use one for each image'):
    load(data_config)
  with pytest.raises(DataError, match="data.condition_path: .*y.npz has no array 'conditions' \\(it has images"):
    load(dataclasses.replace(data_config, path=str(tmp_path / 'y.npz')))
  with pytest.raises(DataError, match='sketches is folder; use an npz, because data.name is '):
    load(dataclasses.replace(data_config, condition_path=str(tmp_path / 'sketches')))


@pytest.mark.parametrize('fields, message', [
    ({'condition_path': ''}, 'data.condition_path is empty; set it to the folder or zip'),
    ({'name': 'digits', 'path': ''}, "data.name is 'digits'; use 'folder', 'zip' or 'npz' with data.condition='pairs'"),
    ({'stack': 3}, 'data.stack is 3; use 1'),
    ({'skip_bad': True}, 'data.skip_bad is True; use False'),
    ({'pair_size': 3}, 'data.pair_size is 3; use a divisor of data.image_size=8'),
    ({'pair_channels': 2}, 'data.pair_channels is 2; use one of 1, 3'),
    ({'condition': 'edges'}, "data.condition_path is '.*'; use it with data.condition='pairs'"),
])
def test_wrong_fields_of_pairs(pairs, fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(pairs, **fields)
