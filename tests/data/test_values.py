"""Measurements: float32 and uint16 arrays with a range of values, from the npz to samples in the same units."""

import dataclasses

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import edit, evaluate, export, main, prepare, sample, sampling
from ddgan_jax.compare import __main__ as compare
from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import pipeline, sources
from ddgan_jax.data.readers import DataError
from ddgan_jax.reporting import grids, tensorboard
from ddgan_jax.training import loop
from tests.support import config_text, quick_config_dict
from tests.support.commands import run_command, succeed

RNG = np.random.default_rng(0)
VALUES = RNG.uniform(250, 320, (40, 8, 8, 5)).astype(np.float32)  # such as temperatures
COUNTS = RNG.integers(0, 65536, (40, 4, 4, 2), np.uint16)


def config(path, **fields):
  return DataConfig(**{
      'name': 'npz', 'path': str(path), 'image_size': 8, 'num_channels': 5, 'value_range': (250.0, 320.0),
      'batch_size': 16} | fields)


def load(data_config):
  return sources.load_source(data_config, log=lambda text: None)


def test_values_reach_the_networks_without_rounding(tmp_path):
  np.savez(tmp_path / 'x.npz', images=VALUES, conditions=COUNTS, labels=np.arange(40) % 3)
  data_config = config(tmp_path / 'x.npz', condition='pairs', pair_size=4, pair_channels=2, pair_range=(0.0, 65535.0))
  source = load(data_config)
  stored = pipeline.stored_images(source, data_config, np.arange(40))
  np.testing.assert_allclose(stored, (VALUES - 250.0) / 35 - 1, atol=1e-6)
  np.testing.assert_allclose(
      pipeline.stored_conditions(source, data_config, np.arange(40)), COUNTS / 32767.5 - 1, atol=1e-6)
  np.testing.assert_allclose(pipeline.in_units_of_data(stored, data_config), VALUES, rtol=1e-6)
  np.testing.assert_allclose(sampling.to_values(stored, (250, 320)), VALUES, rtol=1e-6)
  assert source.num_classes == 3 and len(source.checksum) == 24
  # Flipped with their conditions, in the same order as images of 8 bits.
  flipped = dataclasses.replace(data_config, flip=True)
  batch = pipeline.global_batch(source, flipped, 0, 0)
  both = np.concatenate([batch['image'][:, ::2, ::2, :1], batch['condition'][..., :1]], axis=-1)
  plain = np.concatenate([stored[:, ::2, ::2, :1], COUNTS[..., :1] / np.float32(32767.5) - 1], axis=-1)
  plain_flipped = np.concatenate([stored[:, ::2, ::-1][:, :, ::2, :1], plain[:, :, ::-1, 1:]], axis=-1)
  for row in both:
    assert min(np.abs(plain - row).max((1, 2, 3)).min(), np.abs(plain_flipped - row).max((1, 2, 3)).min()) < 1e-5
  # A single image and grey arrays [N, H, W].
  np.savez(tmp_path / 'y.npz', images=VALUES[..., 0])
  assert load(config(tmp_path / 'y.npz', num_channels=1)).image_shape == (8, 8, 1)


@pytest.mark.parametrize('array, fields, message', [
    (VALUES + np.nan, {}, r"data.path: images\[0\] in .*x.npz has the value nan; use values in 250.0 … 320.0$"),
    (np.where(np.arange(40)[:, None, None, None] == 7, 400, VALUES).astype(np.float32), {},
     r'images\[7\] in .*x.npz has the value 400.0; use values in 250.0 … 320.0, or change data.value_range'),
    (VALUES, {'image_size': 16}, "'images' in .* are 8x8x5; use 16x16x5, or change data.image_size and num_channels"),
    (VALUES, {'num_channels': 4}, 'are 8x8x5; use 8x8x4, or change'),
    (VALUES.astype(np.float64), {}, "'images' in .* is float64; use float32, uint16 or uint8"),
    (VALUES[0, 0], {}, r"'images' in .* is \[8, 5\]; use \[N, H, W\] or \[N, H, W, C\]"),
])
def test_unusable_values(tmp_path, array, fields, message):
  np.savez(tmp_path / 'x.npz', images=array)
  with pytest.raises(DataError, match=message):
    load(config(tmp_path / 'x.npz', **fields))


def test_other_unusable_data(tmp_path):
  with pytest.raises(DataError, match='data.path: .*absent.npz does not exist'):
    load(config(tmp_path / 'absent.npz'))
  np.savez(tmp_path / 'x.npz', images=VALUES, conditions=COUNTS.astype(np.float32))
  data_config = config(tmp_path / 'x.npz', condition='pairs', pair_size=4, pair_channels=2, pair_range=(0.0, 1.0))
  with pytest.raises(DataError, match=r'data.condition_path: conditions\[0\] in .* has the value .*; use values in 0.0 '
                     '… 1.0, or change data.pair_range'):
    load(data_config)
  with pytest.raises(DataError, match="data.path: 'images' in .* is float32; use uint8 .*, or set data.value_range"):
    load(config(tmp_path / 'x.npz', value_range=(), num_channels=3))


@pytest.mark.parametrize('fields, message', [
    ({'value_range': (1.0,)}, r'data.value_range is \(1.0,\); use two numbers, the lowest and the highest value'),
    ({'value_range': (2.0, 1.0)}, 'use two numbers, the lowest and the highest'),
    ({'name': 'folder'}, "use it with data.name='npz', not 'folder'"),
    ({'num_channels': 17}, 'data.num_channels is 17; use 1 … 16 with data.value_range'),
    ({'resize': 'cover'}, "data.resize is 'cover'; use 'none' with data.value_range"),
    ({'stack': 3}, 'data.stack is 3; use 1 with data.value_range'),
    ({'pair_range': (0.0, 1.0)}, "data.pair_range is .*; use it with data.condition='pairs'"),
])
def test_wrong_fields(fields, message):
  with pytest.raises(ConfigError, match=message):
    config('x.npz', **fields)


def test_previews_say_what_they_show():
  lowest = np.full((1, 2, 2, 5), 250.0)
  np.testing.assert_array_equal(grids.values_to_uint8(lowest, (250.0, 320.0)), np.zeros((1, 2, 2, 3)))
  np.testing.assert_array_equal(grids.values_to_uint8(lowest[..., :2] + 70, (250.0, 320.0)), np.full((1, 2, 2, 1), 255))
  assert grids.describe_values(5, (250.0, 320.0)) == 'channels 0, 1, 2 as red, green, blue of 5, 250 black, 320 bright'
  assert grids.describe_values(2, (0.0, 1.0)) == 'channel 0 of 2, 0 black, 1 bright'


def test_a_run_on_values(tmp_path, monkeypatch):
  """Trained, sampled, exported and measured in the units of the data."""
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  np.savez(tmp_path / 'x.npz', images=VALUES, conditions=COUNTS)
  fields = quick_config_dict(
      name='npz', path=str(tmp_path / 'x.npz'), num_channels=5, value_range=(250.0, 320.0), condition='pairs',
      pair_size=4, pair_channels=2, pair_range=(0.0, 65535.0))
  fields['train'] |= {'num_steps': 2, 'sample_every': 2, 'checkpoint_every': 2, 'log_every': 2, 'num_samples': 6}
  fields['optim'] |= {'r1_gamma': 0.0}
  run_config = config_lib.from_config_dict(fields)
  workdir = tmp_path / 'run'
  assert loop.train_and_evaluate(run_config, str(workdir))
  with Image.open(workdir / 'samples' / 'step_00000002.png') as image:
    assert image.mode == 'RGB' and image.size == (8 * 50 + 2, 16 + 50 + 2)
  np.savez(tmp_path / 'two.npz', conditions=COUNTS[:2])
  out = tmp_path / 'out.npz'
  succeed(sample.main, '--workdir', workdir, '--condition', tmp_path / 'two.npz', '--num', 3, '--out', out)
  with np.load(out) as found:
    images, conditions = found['images'], found['conditions']
  assert images.dtype == np.float32 and images.shape == (6, 8, 8, 5) and 250 <= images.min() < images.max() <= 320
  assert len(np.unique(images)) > 1000
  np.testing.assert_allclose(conditions, COUNTS[:2], atol=0.01)  # in their units, so that they can be read again
  again = tmp_path / 'again.npz'
  succeed(sample.main, '--workdir', workdir, '--condition', out, '--num', 3, '--out', again)
  with np.load(again) as found:
    np.testing.assert_allclose(found['images'], images, atol=1e-2)
  conditions = conditions / np.float32(32767.5) - 1
  said = succeed(sample.main, '--workdir', workdir, '--condition', tmp_path / 'two.npz', '--out', tmp_path / 'out.png')
  assert 'out.png shows channels 0, 1, 2 as red, green, blue of 5, 250 black, 320 bright.' in said
  run = ddgan_jax.load(workdir)
  raw = run.sample(jax.random.key(0), 2, condition=conditions)
  assert np.abs(np.asarray(raw)).max() <= 1
  succeed(export.main, '--workdir', workdir, '--out', tmp_path / 'x.stablehlo', '--platforms', 'cpu')
  exported = jax.export.deserialize(bytearray((tmp_path / 'x.stablehlo').read_bytes()))
  again = exported.call(np.uint32(0), np.arange(6, dtype=np.int32), conditions.repeat(3, axis=0))
  np.testing.assert_allclose(again, images, atol=1e-2)
  measured = succeed(evaluate.main, '--workdir', workdir, '--metrics', 'psnr,ssim,diversity', '--num', 3)
  assert 'PSNR, dB' in measured
  (tmp_path / 'recipe.py').write_text(config_text(fields))
  recipe = ('--config', tmp_path / 'recipe.py')
  folder = ('--workdir', workdir, '--condition', tmp_path / 'two.npz', '--out', tmp_path / 'folder')
  for command, flags, message in (
      (prepare, recipe, "data.name is 'npz' with data.value_range, which needs no preparation"),
      (compare, (*recipe, '--config.data.condition=none', '--config.data.pair_size=0', '--config.data.pair_channels=3',
                 '--config.data.pair_range=()'), 'data.value_range is (250.0, 320.0); use images of 8 bits'),
      (main, (*recipe, '--config.train.eval_every=2', '--workdir', tmp_path / 'other'),
       'train.eval_every is 2; use 0 with data.value_range'),
      (evaluate, ('--workdir', workdir, '--metrics', 'modes', '--config', 'digits'), 'data.value_range is (250.0, 32'),
      (evaluate, ('--workdir', workdir, '--metrics', 'psnr', *recipe, '--config.data.pair_range=0,1'),
       '--config.data.pair_range is (0.0, 1.0); use (0.0, 65535.0), as in the run'),
      (evaluate, ('--workdir', workdir, '--metrics', 'psnr', '--reference', out),
       '--reference: use --config with the data and their conditions'),
      (evaluate, ('--workdir', workdir, '--metrics', 'fid'), 'data.value_range is (250.0, 320.0); use --metrics with'),
      (sample, folder, "use an .npz (an array) or a .png (a grid)"),
      (sample, ('--workdir', workdir, '--condition', tmp_path / 'out.png'), 'is not an npz; use an npz with float32'),
      (sample, ('--workdir', workdir, '--condition', tmp_path / 'x.npz', '--num', 0), 'num')):
    result = run_command(command.main, *flags)
    assert result.status == 2 and message in result.err, result.err
  result = run_command(
      edit.main, '--workdir', workdir, '--task', 'variations', '--image', tmp_path / 'out.png')
  assert result.status == 2 and 'is a run with data.value_range; use a run on images of 8 bits' in result.err
