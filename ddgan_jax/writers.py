"""What a run shows: TensorBoard events by CLU, image grids, one progress line."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from ddgan_jax import scatter

_SHOWN_WAIT = 0.1  # of the time spent waiting for data is worth a word
_CELL = 48  # small images are enlarged to about this many pixels


def make_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
  """Tiles images row by row into one picture, with a gap between them.

  Images smaller than 48 pixels are enlarged by a whole factor (bicubic), so that an 8x8 digit can be read.

  Args:
    images: [n, H, W, C] uint8, of NumPy or JAX, C is 1 or 3.
    columns: images per row; by default about the square root of n.

  Returns:
    [H', W', C] uint8.
  """
  images = np.asarray(images)
  count, height, width, channels = images.shape
  columns = columns or int(np.ceil(np.sqrt(count)))
  rows = -(-count // columns)
  scale = max(1, _CELL // max(height, width))
  gap = max(2, scale // 3) if scale > 1 else 2
  cell_h, cell_w = height * scale + gap, width * scale + gap
  grid = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), 64, np.uint8)
  for k, image in enumerate(images):
    top, left = gap + (k // columns) * cell_h, gap + (k % columns) * cell_w
    enlarged = _to_pil(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    grid[top:top + height * scale, left:left + width * scale] = np.asarray(enlarged).reshape(
        height * scale, width * scale, channels)
  return grid


def make_picture(images: np.ndarray, title: str, columns: int | None = None) -> np.ndarray:
  """The picture of a batch, [H', W', C] uint8: a grid of uint8 images, or float32 points as a scatter with a title."""
  return make_grid(images, columns) if images.dtype == np.uint8 else scatter.draw(images.reshape(-1, 2), title)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes [H, W, C] uint8 as a PNG, under a temporary name first so that a killed write leaves no half picture."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f'.{path.name}.partial'
  with partial.open('wb') as file:
    _to_pil(image).save(file, format='PNG')
  partial.replace(path)


def _to_pil(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


class EventWriter:
  """Scalars, images and hyper-parameters for TensorBoard, written by a thread of its own.

  CLU's writer needs TensorFlow, which takes seconds to import: that happens in the thread too, while the run compiles.
  Without TensorFlow, or on another process than the first, nothing is written. Where events cannot be written the run
  goes on without them, and says so once: checkpoints and pictures do not depend on them.

  Args:
    workdir: where the event files go.
    is_main: whether this process writes.
  """

  def __init__(self, workdir: str, is_main: bool = True):
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._pending = [self._thread.submit(_open_writer, workdir)] if is_main else []
    self._opened = self._pending[0] if is_main else None
    self._failed = False

  def hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes a flat table; tuples as text, since TensorBoard knows numbers, booleans and strings."""
    table = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in hparams.items()}
    self._submit(lambda writer: writer.write_hparams(table))

  def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes `scalars` at `step`."""
    self._submit(lambda writer: writer.write_scalars(step, scalars))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes one [H, W, C] uint8 picture at `step`."""
    self._submit(lambda writer: writer.write_images(step, {name: image[None]}))

  def flush(self, say: Callable[[str], None] = print) -> None:
    """Returns when everything is on disk, or `say` has got a sentence on why it is not."""
    self._submit(lambda writer: writer.flush())
    pending, self._pending = self._pending, []
    for future in pending:
      error = future.exception()
      if error is not None and not self._failed:
        self._failed = True
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        say(f'TensorBoard events could not be written ({reason}); the run itself is not affected.')

  def close(self) -> None:
    """Closes the file and ends the thread."""
    self._submit(lambda writer: writer.close())
    self._thread.shutdown()

  def _submit(self, write: Callable) -> None:
    if self._opened is not None:
      opened = self._opened
      self._pending = [future for future in self._pending if not future.done() or future.exception()][:100]
      self._pending.append(self._thread.submit(lambda: opened.result() and write(opened.result())))


def _open_writer(workdir: str):
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # or TensorFlow announces them on standard error
  try:
    import tensorflow as tf
    from clu import metric_writers
  except ImportError as error:
    print(f'No TensorBoard events will be written: {error.name} is not installed.', flush=True)
    return None
  tf.config.set_visible_devices([], 'GPU')  # or it would take the memory that JAX needs
  return metric_writers.create_default_writer(workdir, asynchronous=False)


class Progress:
  """One line per report: step, losses, images per second, time left.

  On a terminal the line is rewritten in place; in a file each report is a line of its own.

  Args:
    num_steps: where the run ends.
    batch_size: images per step.
    stream: where to print, by default standard output.
    quiet: print nothing, on all processes but the first.
  """

  def __init__(self, num_steps: int, batch_size: int, stream=None, quiet: bool = False):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._quiet = quiet
    self._waited = 0.0
    self._stream = stream or sys.stdout
    self._in_place = self._stream.isatty()
    self._width = 0
    self._last: tuple[int, float] | None = None

  @property
  def started(self) -> bool:
    """Whether `start` has been called."""
    return self._last is not None

  def start(self, step: int) -> None:
    """Begins to measure speed at `step`: after compilation, and again after every pause, which is left out of it."""
    self._last = (step, time.perf_counter())
    self._waited = 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for data."""
    begun = time.perf_counter()
    yield
    self._waited += time.perf_counter() - begun

  def report(self, step: int, losses: Mapping[str, float]) -> dict[str, float]:
    """Prints the line for `step`.

    Returns:
      Since the last report or start: `images_per_second`, and `data_wait`, the fraction of the time in which the loop
      waited for the next batch (shown in the line above 10%). Empty before the first start.
    """
    now = time.perf_counter()
    measured = {}
    parts = [f'step {step:,}/{self._num_steps:,}', *(f'{name} {value:.3f}' for name, value in losses.items())]
    if self._last and step > self._last[0]:
      seconds_per_step = (now - self._last[1]) / (step - self._last[0])
      speed = self._batch_size / seconds_per_step
      wait = self._waited / (now - self._last[1])
      measured = {'images_per_second': speed, 'data_wait': wait}
      left = round((self._num_steps - step) * seconds_per_step)
      parts += [f'{speed:,.0f} images/s' if speed >= 10 else f'{speed:.2f} images/s', f'{_duration(left)} left']
      if wait > _SHOWN_WAIT:
        parts.append(f'{wait:.0%} of the time waiting for data')
    self._last = (step, now)
    self._waited = 0.0
    line = '   '.join(parts)
    if self._quiet:
      pass
    elif self._in_place:
      print(f'\r{line:<{self._width}}', end='', file=self._stream, flush=True)
      self._width = len(line)
    else:
      print(line, file=self._stream, flush=True)
    return measured

  def note(self, text: str) -> None:
    """Prints a line of its own, below the progress line if that is being rewritten."""
    if self._quiet:
      return
    if self._in_place and self._width:
      print(file=self._stream)
      self._width = 0
    print(text, file=self._stream, flush=True)


class Profile:
  """A trace of some steps for TensorBoard's profiler, in `<workdir>/profile`, once in a workdir.

  Args:
    workdir: the run's folder.
    first_step: from which step on.
    num_steps: how many steps; 0 is none.
    is_main: whether this process writes; the others stop at the same steps, so that all do the same.
  """

  def __init__(self, workdir: str, first_step: int, num_steps: int, is_main: bool = True):
    self._folder = epath.Path(workdir) / 'profile'
    self._bounds = [] if not num_steps or self._folder.exists() else [first_step, first_step + num_steps]
    self._is_main = is_main
    self._open = False

  def is_due(self, step: int) -> bool:
    """Whether `switch` is to be called before the step that starts from `step`, with none in flight."""
    return step in self._bounds

  def switch(self, say: Callable[[str], None] = print) -> None:
    """Starts the trace, or ends it and says where it is."""
    if self._open:
      self.close()
      say(f'The profile is in {self._folder}; it is shown by TensorBoard, and not taken again while it is there.')
    elif self._is_main:
      jax.profiler.start_trace(str(self._folder))
      self._open = True

  def close(self) -> None:
    """Ends a trace that is still open, at the end of a run."""
    if self._open:
      self._open = False
      self._bounds = []
      jax.profiler.stop_trace()


def _duration(seconds: int) -> str:
  days, rest = divmod(seconds, 86_400)
  clock = f'{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}'
  return f'{days} d {clock}' if days else clock
