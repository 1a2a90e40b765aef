"""What a run shows: TensorBoard events by CLU, image grids, one progress line."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

_CELL = 48  # small images are enlarged to about this many pixels


def make_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
  """Tiles images row by row into one picture, with a gap between them.

  Images smaller than 48 pixels are enlarged by a whole factor (bicubic), so that an 8x8 digit can be read.

  Args:
    images: [n, H, W, C] uint8, C is 1 or 3.
    columns: images per row; by default about the square root of n.

  Returns:
    [H', W', C] uint8.
  """
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
  Without TensorFlow, or on another process than the first, nothing is written.

  Args:
    workdir: where the event files go.
    is_main: whether this process writes.
  """

  def __init__(self, workdir: str, is_main: bool = True):
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._pending = [self._thread.submit(_open_writer, workdir)] if is_main else []
    self._opened = self._pending[0] if is_main else None

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

  def flush(self) -> None:
    """Returns when everything is on disk; raises what went wrong in the thread."""
    self._submit(lambda writer: writer.flush())
    pending, self._pending = self._pending, []
    for future in pending:
      future.result()

  def close(self) -> None:
    """Closes the file and ends the thread."""
    self._submit(lambda writer: writer.close())
    self._thread.shutdown()

  def _submit(self, write: Callable) -> None:
    if self._opened is not None:
      opened = self._opened
      self._pending = [future for future in self._pending if not future.done() or future.exception()]
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
  """

  def __init__(self, num_steps: int, batch_size: int, stream=None):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._stream = stream or sys.stdout
    self._in_place = self._stream.isatty()
    self._width = 0
    self._last: tuple[int, float] | None = None

  def start(self, step: int) -> None:
    """Begins to measure speed at `step`: after compilation, and again after every pause."""
    self._last = (step, time.perf_counter())

  def report(self, step: int, losses: Mapping[str, float]) -> float | None:
    """Prints the line for `step` and returns images per second since the last report, None for the first."""
    now = time.perf_counter()
    speed = None
    parts = [f'step {step:,}/{self._num_steps:,}', *(f'{name} {value:.3f}' for name, value in losses.items())]
    if self._last and step > self._last[0]:
      seconds_per_step = (now - self._last[1]) / (step - self._last[0])
      speed = self._batch_size / seconds_per_step
      left = round((self._num_steps - step) * seconds_per_step)
      parts += [f'{speed:,.0f} images/s' if speed >= 10 else f'{speed:.2f} images/s', f'{_duration(left)} left']
    self._last = (step, now)
    line = '   '.join(parts)
    if self._in_place:
      print(f'\r{line:<{self._width}}', end='', file=self._stream, flush=True)
      self._width = len(line)
    else:
      print(line, file=self._stream, flush=True)
    return speed

  def note(self, text: str) -> None:
    """Prints a line of its own, below the progress line if that is being rewritten."""
    if self._in_place and self._width:
      print(file=self._stream)
      self._width = 0
    print(text, file=self._stream, flush=True)


def _duration(seconds: int) -> str:
  days, rest = divmod(seconds, 86_400)
  clock = f'{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}'
  return f'{days} d {clock}' if days else clock
