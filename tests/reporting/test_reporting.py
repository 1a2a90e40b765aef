"""Grids, the progress line, and event files read back."""

import io

import jax
import numpy as np
from PIL import Image

from ddgan_jax.reporting import grids, tensorboard
from ddgan_jax.reporting.progress import Progress


def test_grid_places_and_enlarges():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((5, 8, 8, 1), 40, np.uint8)
  grid = grids.make_grid(images)
  scale, gap = 6, 2
  assert grid.shape == (2 * (8 * scale + gap) + gap, 3 * (8 * scale + gap) + gap, 1)
  for k in range(5):
    top, left = gap + (k // 3) * 50, gap + (k % 3) * 50
    np.testing.assert_array_equal(grid[top:top + 48, left:left + 48], 40 * k)
  large = grids.make_grid(np.zeros((4, 64, 64, 3), np.uint8))
  assert large.shape == (2 * 66 + 2, 2 * 66 + 2, 3)


def test_png_round_trip(tmp_path):
  for channels in (1, 3):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, channels), np.uint8)
    grids.save_png(tmp_path / 'new' / 'x.png', image)
    read = np.asarray(Image.open(tmp_path / 'new' / 'x.png')).reshape(9, 7, channels)
    np.testing.assert_array_equal(read, image)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x.png']


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_is_lines_in_a_file_and_one_line_on_a_terminal(monkeypatch):
  clock = iter([0.0, 10.0, 20.0])
  monkeypatch.setattr('ddgan_jax.reporting.progress.time.perf_counter', lambda: next(clock))
  file = io.StringIO()
  progress = Progress(num_steps=1000, batch_size=32, stream=file)
  progress.start(100)
  assert progress.report(200, {'loss_d': 1.25, 'loss_g': 0.5}) == {
      'images_per_second': 320, 'data_wait': 0}
  assert file.getvalue() == 'step 200/1,000   loss_d 1.250   loss_g 0.500   320 images/s   0:01:20 left\n'
  progress.report(300, {'loss_d': 1.0})
  assert file.getvalue().count('\n') == 2 and '\r' not in file.getvalue()

  terminal = Terminal()
  clock = iter([0.0, 1.0, 2.0])
  progress = Progress(num_steps=1000, batch_size=32, stream=terminal)
  progress.start(0)
  progress.report(1, {'loss_d': 1.0})
  progress.report(2, {'loss_d': 1.0})
  assert terminal.getvalue().count('\r') == 2 and '\n' not in terminal.getvalue()
  progress.note('Finished.')
  assert terminal.getvalue().endswith('\nFinished.\n')


def test_progress_tells_of_a_loop_that_waits_for_data(monkeypatch):
  clock = iter([0.0, 1.0, 4.0, 10.0, 10.0, 10.5, 20.0])
  monkeypatch.setattr('ddgan_jax.reporting.progress.time.perf_counter', lambda: next(clock))
  file = io.StringIO()
  progress = Progress(num_steps=1000, batch_size=32, stream=file)
  for step, wait in ((100, 0.3), (200, 0.05)):
    if step == 100:
      progress.start(0)
    with progress.waiting():
      pass
    assert progress.report(step, {}) == {'images_per_second': 320, 'data_wait': wait}
  first, second = file.getvalue().splitlines()
  assert first.endswith('left   30% of the time waiting for data') and second.endswith('left')
  quiet = io.StringIO()
  progress = Progress(num_steps=1000, batch_size=32, stream=quiet, quiet=True)
  progress.note('hello')
  assert quiet.getvalue() == ''


def test_a_profile_is_taken_once_and_closed_at_the_end(tmp_path):
  jax.clear_caches()  # a profile describes every program of the process
  profile, said = tensorboard.Profile(tmp_path, first_step=3, num_steps=5), []
  assert [step for step in range(20) if profile.is_due(step)] == [3, 8]
  profile.switch(said.append)
  jax.block_until_ready(jax.numpy.arange(8) * 2)
  assert not said
  profile.close()  # the run ended before step 8
  assert list(tmp_path.rglob('*.xplane.pb')) and not profile.is_due(8)
  again = tensorboard.Profile(tmp_path, first_step=3, num_steps=5)
  assert not any(again.is_due(step) for step in range(20))
  assert not any(tensorboard.Profile(tmp_path / 'other', 3, 0).is_due(step) for step in range(20))
