"""The figures of benchmarks/figures.py, drawn from untrained runs: every script runs and labels its figure."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from benchmarks import figures
from ddgan_jax import config as config_lib
from ddgan_jax import diffusion
from ddgan_jax.config import recipes
from ddgan_jax.reporting.canvas import Canvas


def untrained(recipe, num_timesteps=None):
  """A run whose G scales its input."""
  config = config_lib.from_config_dict(recipes.load(recipe))
  schedule = diffusion.make_schedule(num_timesteps or config.diffusion.num_timesteps)
  return ddgan_jax.Run(lambda x_tp1, t, z: jax.numpy.tanh(x_tp1), schedule, config, 0, None)


@pytest.fixture
def canvas_texts(monkeypatch):
  """The texts drawn on a canvas, in order."""
  texts, write = [], Canvas.text
  monkeypatch.setattr(
      Canvas, 'text', lambda self, x, y, text, **options: texts.append(text) or write(self, x, y, text, **options))
  return texts


@pytest.fixture
def comparison(tmp_path):
  rows = [('gan', 'one-shot GAN', 1, 12, 0.61, 0.0008), ('ddpm', 'Gaussian diffusion', 1000, 25, 0.953, 0.71),
          ('ddpm', 'Gaussian diffusion', 4, 25, 0.11, 0.004), ('ddgan_4', 'DDGAN', 4, 25, 0.934, 0.0041)]
  (tmp_path / 'comparison.json').write_text(json.dumps([
      {'name': name, 'title': title, 'evaluations': evaluations, 'seconds': seconds, 'metrics': {
          'modes': {'value': modes}, 'in_mode': {'value': near, 'of_reference': 0.989}}}
      for name, title, evaluations, modes, near, seconds in rows]))
  return tmp_path


def test_titles_show_quality_evaluations_and_time(monkeypatch, canvas_texts, comparison):
  monkeypatch.setattr(ddgan_jax, 'load', lambda workdir, step, num_timesteps: untrained('gaussians25', num_timesteps))
  figures.main(['gaussians25', '--workdir', str(comparison), '--folder', str(comparison)])
  assert Image.open(comparison / 'gaussians25.png').width == 900
  assert canvas_texts[:3] == ['Real data', '', '99% near a mode, 25 of 25 modes']
  assert canvas_texts[3:6] == ['one-shot GAN', '1 evaluation, 0.8 ms', '61% near a mode, 12 of 25 modes']
  assert '1,000 evaluations, 710 ms' in canvas_texts and '4 evaluations, 4.1 ms' in canvas_texts


def test_quality_against_time(comparison):
  figures.main(['quality', '--workdir', str(comparison), '--folder', str(comparison)])
  assert Image.open(comparison / 'quality_speed.png').width == 900


def test_a_stack_is_split_into_its_channels(monkeypatch, canvas_texts, tmp_path):
  run = untrained('stacked_digits')
  monkeypatch.setattr(ddgan_jax, 'load', lambda workdir: run)
  shown, panel = [], Canvas.panel
  monkeypatch.setattr(
      Canvas, 'panel', lambda self, values, *place: shown.append(values) or panel(self, values, *place))
  figures.main(['stacked', '--workdir', 'run', '--folder', str(tmp_path)])
  assert Image.open(tmp_path / 'stacked_digits.png').width == 900 and {'R', 'G', 'B'} <= set(canvas_texts)
  assert np.ptp(shown[0].astype(int), axis=-1).max() > 100  # the data are stacks, too
  np.testing.assert_array_equal(np.concatenate(shown[3:], axis=-1), shown[2])
