"""The editing command on an untrained run; every mistake gets one sentence."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import edit, train_state
from ddgan_jax.cli import image_output
from ddgan_jax.editing import replacement
from ddgan_jax.runs.checkpoints import Checkpoints
from tests.support import ROOT, command_environment
from tests.support.commands import run_command, succeed

# Simulates a machine without TensorFlow.
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules['tensorflow'] = None
del sys.argv[0]
runpy.run_module('ddgan_jax.edit', run_name='__main__', alter_sys=True)
"""
ENVIRONMENT = command_environment()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, quick_config):
  """A workdir `run` with random parameters, and input images."""
  folder = tmp_path_factory.mktemp('edit')
  state = jax.jit(lambda: train_state.create(quick_config))()
  rng = np.random.default_rng(0)
  fill = lambda leaf: (rng.standard_normal(leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))).astype(np.float32)
  (folder / 'run').mkdir()
  (folder / 'run/config.json').write_text(config_lib.to_json(quick_config))
  checkpoints = Checkpoints(folder / 'run')
  checkpoints.save(state.replace(step=state.step + 7, ema_params=jax.tree.map(fill, state.ema_params)))
  checkpoints.close()
  for name, pixels in {
      'x': rng.integers(0, 256, (8, 8)), 'y': rng.integers(0, 256, (8, 8)), 'large': rng.integers(0, 256, (24, 16, 3)),
      'mask': 255 * (np.arange(8)[:, None] > 3) * np.ones((8, 8)), 'black': np.zeros((8, 8)), 'wide': np.ones((8, 9)),
      'small': rng.integers(0, 256, (4, 4)), 'large_mask': 255 * (np.arange(24)[:, None] > 11) * np.ones((24, 16)),
  }.items():
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{name}.png')
  return folder


def run_edit(folder, *arguments):
  return run_command(edit.main, '--workdir', 'run', *arguments, cwd=folder)


def edit_images(folder, *arguments):
  """The images and inputs of an edit."""
  succeed(edit.main, '--workdir', 'run', *arguments, '--out', 'out.npz', cwd=folder)
  with np.load(folder / 'out.npz') as file:
    return file['images'], file['inputs']


def test_edit_needs_no_tensorflow(folder):
  """In a separate process, with the same images as in this one."""
  flags = ['--task=variations', '--image=x.png', '--num=2']
  expected, _ = edit_images(folder, *flags)
  subprocess.run(
      [sys.executable, '-c', WITHOUT_TENSORFLOW, 'edit', '--workdir', 'run', *flags, '--out=process.npz'],
      cwd=folder, env={**ENVIRONMENT, 'PYTHONPATH': str(ROOT)}, check=True, timeout=600)
  with np.load(folder / 'process.npz') as file:
    np.testing.assert_array_equal(file['images'], expected)


@pytest.mark.parametrize('method', [['--num_steps=5'], ['--num_resamples=2']], ids=''.join)
def test_inpainting_keeps_the_known_pixels(folder, method):
  images, inputs = edit_images(
      folder, '--image', 'x.png', '--mask', 'mask.png', '--num', '3', '--batch_size', '2', *method)
  x = np.asarray(Image.open(folder / 'x.png'))[..., None]
  assert images.shape == (3, 8, 8, 1)
  np.testing.assert_array_equal(images[:, :4], np.broadcast_to(x[:4], (3, 4, 8, 1)))
  np.testing.assert_array_equal(inputs[0], x)
  assert len({image.tobytes() for image in images}) == 3


def test_a_large_image_and_its_mask_are_resized_alike(folder):
  images, inputs = edit_images(
      folder, '--image', 'large.png', '--mask', 'large_mask.png', '--num=2', '--num_resamples=1', '--resize=cover')
  grey = Image.open(folder / 'large.png').convert('L')
  resized = np.asarray(grey.resize((8, 8), Image.Resampling.LANCZOS, box=(0, 4, 16, 20)))
  np.testing.assert_array_equal(inputs[0, ..., 0], resized)
  np.testing.assert_array_equal(images[:, :4, :, 0], np.broadcast_to(resized[:4], (2, 4, 8)))
  assert (images[:, 4:] != inputs[0, 4:]).any()


def test_interpolation_ends_at_samples(folder):
  images, inputs = edit_images(folder, '--task=interpolate', '--between=2,5', '--num=4', '--seed=3')
  samples = image_output.generate(ddgan_jax.load(folder / 'run'), 6, 3)
  np.testing.assert_allclose(images[[0, -1]].astype(int), samples[[2, 5]], atol=1)
  assert len(images) == 4 and len(inputs) == 0


def test_super_resolution_keeps_the_block_means(folder):
  images, inputs = edit_images(folder, '--task=superres', '--image=small.png', '--num=2', '--method=replace')
  unclipped = ((images > 0) & (images < 255)).reshape(2, 4, 2, 4, 2).all((2, 4))
  small = np.asarray(Image.open(folder / 'small.png'))
  assert unclipped.any()
  np.testing.assert_allclose(
      np.asarray(replacement.block_means(images.astype(np.float32), 2))[..., 0][unclipped],
      np.broadcast_to(small, (2, 4, 4))[unclipped], atol=0.5)
  np.testing.assert_array_equal(inputs[0, ::2, ::2, 0], small)


def test_one_image_does_not_depend_on_the_others(folder):
  flags = ['--task=variations', '--image=x.png', '--seed=5']
  many, _ = edit_images(folder, *flags, '--num=5')
  few, _ = edit_images(folder, *flags, '--num=3', '--batch_size=1')
  np.testing.assert_allclose(many[:3].astype(int), few, atol=1)


def test_edits_are_saved_as_a_grid_or_a_folder(folder):
  """The grid begins with its input."""
  result = run_edit(folder, '--task=stroke', '--image=x.png', '--level=2', '--num=4', '--out=grid.png')
  assert result.status == 0, result.err
  assert 'stroke: 4 images from step 7 of' in result.out
  grid = Image.open(folder / 'grid.png')
  assert grid.width / grid.height == pytest.approx(5, rel=0.05)
  first = grid.crop((2, 2, 2 + 48, 2 + 48)).resize((8, 8), Image.Resampling.BOX)
  assert np.abs(np.asarray(first, int) - np.asarray(Image.open(folder / 'x.png'))).mean() < 25
  result = run_edit(folder, '--task=interpolate', '--image=x.png', '--image2=y.png', '--num=2', '--out=frames')
  assert result.status == 0, result.err
  assert {path.name for path in (folder / 'frames').iterdir()} == {
      'input_0.png', 'input_1.png', '000000.png', '000001.png'}


@pytest.mark.parametrize('flags, message', [
    ('--image=x.png', '--mask is missing; --task inpaint requires --image and --mask'),
    ('--image=nowhere.png --mask=mask.png', "--image is 'nowhere.png', which does not exist"),
    ('--image=x.png --mask=wide.png', '--mask: wide.png is 8x9; use 8x8'),
    ('--image=x.png --mask=black.png', '--mask: black.png is all black; use white'),
    ('--image=large.png --mask=mask.png', '--image: large.png is 24x16, which data.resize='),
    ('--task=stroke --image=x.png --level=3', '--level is 3; use 1 … 2 (T)'),
    ('--task=superres --image=x.png', '--image: x.png is 8x8; use a square image smaller than 8x8'),
    ('--task=stroke --image=x.png --mask=mask.png', '--mask does not apply to --task stroke; use it with'),
], ids=lambda value: value if value.startswith('--image') or value.startswith('--task') else '')
def test_errors_are_one_sentence(folder, flags, message):
  result = run_edit(folder, *flags.split())
  assert result.status == 2 and message in result.err and result.err.count('\n') == 1, result.err
