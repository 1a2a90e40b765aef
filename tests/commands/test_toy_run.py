"""Runs on points from the command line, and a run without a discriminator, sampled in fewer steps."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import main as train
from ddgan_jax import sample, sampling, train_state
from ddgan_jax.cli import image_output
from ddgan_jax.config import ConfigError
from ddgan_jax.reporting import tensorboard
from ddgan_jax.training import loop
from tests.objectives.test_ablations import toy_config
from tests.support.commands import run_command, succeed

SMALL = ['--config.generator.num_channels_dae=16', '--config.discriminator.ngf=16', '--config.train.num_steps=20',
         '--config.train.log_every=10', '--config.train.num_samples=50', '--config.optim.lazy_reg=1']


def test_points_from_command_to_picture(tmp_path):
  """Trained, sampled as floats and as a scatter plot; a folder of points is refused."""
  workdir = tmp_path / 'run'
  output = succeed(train.main, '--config', 'gaussians25', '--workdir', workdir, *SMALL)
  assert 'gaussians25: 100,000 points, on 1 cpu device(s)' in output and 'Finished 20 steps' in output
  for picture in ('data.png', 'samples/step_00000020.png'):
    assert Image.open(workdir / picture).size == (600, 600)

  output = succeed(sample.main, '--workdir', workdir, '--num', 7, '--out', tmp_path / 'x.npz')
  assert output.startswith('7 points from step 20 of')
  points = np.load(tmp_path / 'x.npz')['images']
  assert points.shape == (7, 1, 1, 2) and points.dtype == np.float32
  assert len(np.unique(np.round(127.5 * points) / 127.5 - points)) > 10  # not quantised
  loaded = ddgan_jax.load(workdir)
  np.testing.assert_allclose(image_output.generate(loaded, 7, seed=0, batch_size=3), points, atol=1e-5)

  image_output.save(str(tmp_path / 'x.png'), points, 'title')
  assert Image.open(tmp_path / 'x.png').size == (600, 600)
  output = succeed(sample.main, '--workdir', workdir, '--trajectory', '--out', tmp_path / 'strip.png')
  assert output.startswith('2000 points from step 20 of')
  width, height = Image.open(tmp_path / 'strip.png').size
  assert width > 3 * height  # one row
  result = run_command(sample.main, '--workdir', workdir, '--out', tmp_path / 'folder')
  assert result.status == 2 and 'use a .png (a scatter plot) or an .npz (an array) for points' in result.err


def test_a_gaussian_run_has_no_discriminator_and_samples_in_fewer_steps(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  config = toy_config('gaussian', 100)
  config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, batch_size=32),
      train=dataclasses.replace(config.train, num_steps=3))
  loop.train_and_evaluate(config, str(tmp_path))
  output = capsys.readouterr().out
  assert 'parameters; no D.' in output and 'loss_g' in output and 'loss_d' not in output
  assert 'Discriminator' not in (tmp_path / 'parameters.txt').read_text()
  longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=4))
  loop.train_and_evaluate(longer, str(tmp_path))
  assert 'Resumed at step 3; next step done' in capsys.readouterr().out
  long, short = ddgan_jax.load(tmp_path), ddgan_jax.load(tmp_path, num_timesteps=4)
  assert (long.schedule.num_timesteps, short.schedule.num_timesteps) == (100, 4)
  points = image_output.generate(short, 5, seed=0)
  assert points.shape == (5, 1, 1, 2) and np.abs(points).max() <= 5 and np.ptp(points) > 1e-3
  steps = image_output.denoise(short, 5, seed=0)
  np.testing.assert_allclose(steps.x_t[-1], points, atol=1e-5)
  assert len(steps.x_t) == 5 and not steps.has_latent and 'z' not in steps.head(0)
  with pytest.raises(ConfigError, match='num_timesteps is 3; use a divisor of 100'):
    ddgan_jax.load(tmp_path, num_timesteps=3)


def test_runs_of_many_steps_are_sampled_in_smaller_batches(monkeypatch):
  """The noise of all steps is drawn at once, so its size bounds the batch; the images do not change."""
  config = toy_config('gaussian', 100)
  loaded = ddgan_jax.Run(lambda x_tp1, t, z: 0.5 * x_tp1, train_state.make_schedule(config), config, 0, None)
  expected = image_output.generate(loaded, 6, seed=0)
  batches = []
  sample_given_noise = sampling.sample_given_noise

  def record_batch(generator_fn, schedule, x_T, z, noise):
    batches.append(len(x_T))
    return sample_given_noise(generator_fn, schedule, x_T, z, noise)

  monkeypatch.setattr(sampling, 'sample_given_noise', record_batch)
  monkeypatch.setattr(sampling, '_MAX_NOISE', 2 * 100 * (2 + config.generator.nz))
  np.testing.assert_allclose(image_output.generate(loaded, 6, seed=0), expected, atol=1e-6)
  assert batches == [2]  # traced once
