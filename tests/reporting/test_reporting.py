"""Sample grids, the progress line, profiles, and event files read back."""

import io

import jax
import numpy as np
from PIL import Image

from ddgan_jax.reporting import grids, tensorboard, trajectories
from ddgan_jax.reporting.progress import Progress


def test_a_grid_places_and_enlarges_images():
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


def test_a_panel_keeps_the_shape_of_its_image():
  """A grid of ten samples has four columns and three rows; in the square panel it is not stretched."""
  canvas = trajectories.Canvas(2, 2)
  canvas.panel(np.zeros((30, 60, 3), np.uint8), 0.5, 0.5, 1, color='black')
  rows, columns = np.nonzero(canvas.pixels().max(axis=-1) < 128)
  assert abs(np.ptp(columns) - 100) <= 3 and abs(np.ptp(rows) - 50) <= 3
  assert abs(rows.mean() - 100) <= 2 and abs(columns.mean() - 100) <= 2


def test_a_strip_of_a_thousand_steps_is_thinned(monkeypatch):
  """Five x_t with their predictions, in RGB and with names; an animation has at most 51 frames."""
  x_t = np.linspace(0, 250, 1001).astype(np.uint8).reshape(-1, 1, 1, 1, 1) * np.ones((2, 8, 8, 3), np.uint8)
  heads, shown = [], []
  panel = trajectories.Canvas.panel
  monkeypatch.setattr(trajectories.Canvas, 'text', lambda self, x, y, text, **options: heads.append(text))
  monkeypatch.setattr(trajectories.Canvas, 'panel',
                      lambda self, values, *place: shown.append(int(values.max())) or panel(self, values, *place))
  steps = trajectories.Steps(x_t, x_t[1:], 'title', names=('class 3', 'class 1'))
  strip = trajectories.draw_strip(steps)
  assert strip.shape[1:] == (1000, 3) and strip.dtype == np.uint8
  assert shown[::2] == [0, 0, 62, 62, 125, 125, 187, 187, 250] == shown[1::2]
  for head in ('$x_{1000}$', '$G(x_{1000}, t=999, z)$', '$G(x_{250}, t=249, z)$', '$x_{0}$', 'class 3'):
    assert heads.count(head) == 1
  assert heads.count('first of 250 steps') == 4
  assert len(trajectories.draw_frames(steps)) == 51


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


def test_progress_reports_the_time_spent_waiting_for_data(monkeypatch):
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
  profile, messages = tensorboard.Profile(tmp_path, first_step=3, num_steps=5), []
  assert [step for step in range(20) if profile.is_due(step)] == [3, 8]
  profile.switch(messages.append)
  jax.block_until_ready(jax.numpy.arange(8) * 2)
  assert not messages
  profile.close()  # the run ended before step 8
  assert list(tmp_path.rglob('*.xplane.pb')) and not profile.is_due(8)
  resumed = tensorboard.Profile(tmp_path, first_step=3, num_steps=5)
  assert not any(resumed.is_due(step) for step in range(20))
  assert not any(tensorboard.Profile(tmp_path / 'other', 3, 0).is_due(step) for step in range(20))


def read_hparams(folder):
  """The group and fields that the HParams plug-in reads from all event files, in TensorBoard's order."""
  from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
  from tensorboard.plugins.hparams import metadata

  events = EventAccumulator(str(folder)).Reload()
  content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
  session = metadata.parse_session_start_info_plugin_data(content)
  fields = {name: getattr(value, value.WhichOneof('kind')) for name, value in session.hparams.items()}
  return session.group_name, fields


def test_a_resumed_run_is_one_session_with_its_current_fields(tmp_path):
  """Also if the events of an earlier version, or of another writer, have a session with old fields."""
  fields = {'optim.lr_g': 0.5, 'generator.ch_mult': (1, 2, 2), 'generator.fir': True, 'data.name': 'digits',
            'generator.attn_resolutions': (), 'optim.r2_gamma': None}
  for start, rate in enumerate((0.5, 0.25)):
    writer = tensorboard.EventWriter(str(tmp_path))
    if not start:
      writer._submit(lambda writer: writer.write_hparams({'optim.lr_g': 7.0}))
    writer.hparams({**fields, 'optim.lr_g': rate})
    writer.scalars(10 * start, {'loss_d': 1.0, 'loss_d_real': 0.5, 'r1_penalty': 0.25, 'lr_g': rate, 'eval/fid': 3.0})
    messages = []
    writer.flush(messages.append)
    writer.close()
    assert not messages
    group, found = read_hparams(tmp_path)
    assert group == str(tmp_path) and found == {
        'optim.lr_g': rate, 'generator.ch_mult': '1,2,2', 'generator.fir': True, 'data.name': 'digits',
        'generator.attn_resolutions': '', 'optim.r2_gamma': 'None'}

  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(tmp_path)).Reload()
  tags = {tag for tag in events.Tags()['tensors'] if not tag.startswith('_hparams_/')}
  assert tags == {'loss/d', 'loss/d_real', 'loss/r1', 'lr/g', 'eval/fid'}
  assert [event.step for event in events.Tensors('loss/d')] == [0, 10]


def test_writers_of_clu_are_accepted(tmp_path):
  """CLU's `MultiWriter` around another writer receives what TensorBoard does."""
  from clu import metric_writers

  class Recorder(metric_writers.MultiWriter):
    def __init__(self):
      super().__init__([])
      self.calls = []

    def write_scalars(self, step, scalars):
      self.calls.append((step, scalars))
      super().write_scalars(step, scalars)

  recorder = Recorder()
  writer = tensorboard.EventWriter(str(tmp_path), writers=[lambda workdir: metric_writers.MultiWriter([recorder])])
  writer.hparams({'optim.lr_g': 0.5, 'generator.ch_mult': (1, 2)})
  writer.scalars(3, {'loss_d': 1.0})
  writer.image(3, 'samples', np.zeros((4, 4, 1), np.uint8))
  messages = []
  writer.flush(messages.append)
  writer.close()
  assert not messages and recorder.calls == [(3, {'loss/d': 1.0})]
