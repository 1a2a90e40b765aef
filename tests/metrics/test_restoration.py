"""PSNR, SSIM, diversity and consistency: against scikit-image, by formula, and by command on any number of devices."""

import json

import jax
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from ddgan_jax import evaluate
from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.config.checks import CONDITION_METRICS
from ddgan_jax.data import conditions, pipeline, sources
from ddgan_jax.metrics import image_sets, restoration
from ddgan_jax.parallel import sharding
from tests.commands.test_image_conditions import make_config, random_run, write_state
from tests.support.commands import run_command, succeed

RNG = np.random.default_rng(0)


def images(count, size, channels):
  """Smooth images and noisy copies of them, uint8."""
  x, y = np.meshgrid(*2 * [np.linspace(0, 3, size)])
  waves = np.stack([np.sin(x * i + k) + np.cos(y * (i + 1)) for i in range(count) for k in range(channels)])
  clean = (127.5 + 60 * waves).reshape(count, channels, size, size).transpose(0, 2, 3, 1)
  noisy = clean + RNG.normal(0, 20, clean.shape)
  return tuple(np.clip(np.round(each), 0, 255).astype(np.uint8) for each in (clean, noisy))


@pytest.mark.parametrize('size, channels', [(32, 3), (16, 1), (8, 1), (8, 3)])
def test_psnr_and_ssim_are_scikit_images(size, channels):
  clean, noisy = images(3, size, channels)
  options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False) if size >= 11 else dict(
      win_size=7, use_sample_covariance=False)
  for i in range(3):
    np.testing.assert_allclose(
        restoration.psnr(noisy[i], clean[i]), skimage_metrics.peak_signal_noise_ratio(clean[i], noisy[i]), rtol=1e-5)
  expected = [skimage_metrics.structural_similarity(
      clean[i], noisy[i], channel_axis=-1, data_range=255, **options) for i in range(3)]
  np.testing.assert_allclose(restoration.ssim(noisy, clean), expected, atol=2e-4)
  assert 0.1 < min(expected) < 0.95
  np.testing.assert_allclose(restoration.ssim(clean, clean), 1, atol=1e-6)
  assert restoration.psnr(clean[0], clean[0]) == 100


def test_values_of_several_samples():
  clean, _ = images(2, 16, 1)
  clean = np.clip(clean, 40, 200)
  offsets = np.array([-20, 10, 10])
  samples = (clean[:, None].astype(int) + offsets[:, None, None, None]).astype(np.uint8)
  data_config = DataConfig(image_size=16, num_channels=1, condition='lowres:4')
  uniforms = RNG.random((2, conditions.NUM_UNIFORMS))
  condition = conditions.compute(clean / np.float32(127.5) - 1, data_config, uniforms)
  found = restoration.measure(samples, clean, condition, uniforms, data_config, CONDITION_METRICS)
  decibels = 10 * np.log10(255**2 / offsets.astype(float) ** 2)
  np.testing.assert_allclose(found['psnr'], decibels.mean(), rtol=1e-5)
  np.testing.assert_allclose(found['psnr_of_mean'], 100)
  np.testing.assert_allclose(found['diversity'], offsets.std(), rtol=1e-5)
  np.testing.assert_allclose(found['consistency'], np.abs(offsets).mean(), rtol=1e-4)
  np.testing.assert_allclose(found['ssim_of_mean'], 1, atol=1e-6)
  # Of a masked image, only the known pixels count, here 10 grey levels darker than the sample.
  data_config = DataConfig(image_size=16, num_channels=1, condition='mask')
  condition = conditions.compute(clean / np.float32(127.5) - 1, data_config, uniforms)
  hole = conditions.holes(uniforms, 16)[..., None]
  changed = np.where(hole, 255 - clean, clean + 10).astype(np.uint8)[:, None]
  np.testing.assert_allclose(
      restoration.measure(changed, clean, condition, uniforms, data_config, ('consistency',))['consistency'], 10,
      rtol=1e-4)


def test_the_number_of_devices_does_not_matter(tmp_path):
  config = make_config()
  write_state(config, tmp_path)
  run, source = random_run(tmp_path), sources.ArraySource(RNG.integers(0, 256, (11, 8, 8, 1), np.uint8))
  found = []
  for devices, batch_size in ((1, 6), (4, 64)):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    given = image_sets.ConditionData(source, config.data, 2)
    images_ = image_sets.generated_images(config, 3, mesh, given=given)(run.params, 'run')
    found.append(restoration.evaluate(images_, given, CONDITION_METRICS, 10, batch_size, mesh))
  assert [report['n'] for report in found] == [10, 10]
  for name, entry in found[0]['metrics'].items():
    np.testing.assert_allclose(entry['value'], found[1]['metrics'][name]['value'], rtol=1e-3, err_msg=name)
  # Samples 2 i and 2 i + 1 are of condition i, which is that of the stored image i.
  samples = images_.rows(0, 20).reshape(10, 2, 8, 8, 1)
  truth = pipeline.stored_images(source, config.data, np.arange(10))
  psnr = np.mean([restoration.psnr(samples[i, j], truth[i]) for i in range(10) for j in range(2)])
  np.testing.assert_allclose(found[1]['metrics']['psnr']['value'], psnr, rtol=1e-3)
  small = DataConfig(image_size=6, num_channels=1, condition='lowres:2')
  with pytest.raises(ConfigError, match='ssim: images are 6x6; use images of at least 7x7'):
    grey = image_sets.array_images(np.zeros((2, 6, 6, 1), np.uint8), 'grey')
    restoration.evaluate(grey, image_sets.ConditionData(source, small), ('ssim',), 2, 8, mesh)
  # PSNR alone is measured at any size.
  tiny = sources.ArraySource(np.zeros((2, 6, 6, 1), np.uint8))
  report = restoration.evaluate(grey, image_sets.ConditionData(tiny, small), ('psnr',), 2, 8, mesh)
  assert report['metrics']['psnr']['value'] == 100


def test_by_command(tmp_path):
  config = make_config()
  write_state(config, tmp_path)
  out = succeed(
      evaluate.main, '--workdir', tmp_path, '--metrics', 'psnr,consistency', '--num', 5, '--samples_per_condition', 2)
  assert 'n = 5' in out and 'PSNR of the mean sample, dB' in out and '[2 samples per condition]' in out
  report = json.loads(next(tmp_path.glob('evaluation_*.json')).read_text())
  assert set(report['metrics']) == {'psnr', 'psnr_of_mean', 'consistency'}
  # On held-out digits, with other numbers of samples, and on other images: each in its own file.
  psnr = ('--workdir', tmp_path, '--metrics', 'psnr', '--num', 5, '--samples_per_condition')
  out = succeed(evaluate.main, *psnr, 2, '--config', 'digits', '--config.data.split=test')
  assert 'reference digits (test), n = 5' in out
  succeed(evaluate.main, *psnr, 3)
  np.savez(tmp_path / 'other.npz', images=RNG.integers(0, 256, (4, 8, 8, 1), np.uint8))
  assert 'n = 4; reference' in succeed(evaluate.main, *psnr, 2, '--reference', tmp_path / 'other.npz')
  assert len(list(tmp_path.glob('evaluation_*.json'))) == 4
  for flags, message in (
      (('--metrics', 'psnr,fid'), '--metrics has psnr and fid; measure them in separate commands'),
      (('--metrics', 'psnr', '--jpeg'), '--jpeg: omit it with --metrics psnr'),
      (('--metrics', 'diversity', '--samples_per_condition', 1), '--samples_per_condition is 1; use at least 2'),
      (('--metrics', 'psnr', '--config', 'cifar10'), '--config.data.image_size is 32; use 8, as in the run')):
    result = run_command(evaluate.main, '--workdir', tmp_path, *flags)
    assert result.status == 2 and message in result.err, result.err
  plain = tmp_path / 'plain'
  plain.mkdir()
  write_state(make_config('none'), plain)
  result = run_command(evaluate.main, '--workdir', plain, '--metrics', 'ssim')
  assert result.status == 2 and 'ssim: use --workdir with a run that has a data.condition' in result.err
