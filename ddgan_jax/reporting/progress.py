"""The progress line of a run."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator, Mapping


class Progress:
  """One line per report: step, losses, images per second, time left.

  On a terminal the line is rewritten in place; in a file each report is a separate line.

  Args:
    num_steps: the last step of the run.
    batch_size: images per step.
    stream: where to print; by default standard output.
    quiet: print nothing; set on all processes but the first.
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
    """Starts measuring speed at `step`: after compilation, and after every pause, so that neither counts."""
    self._last = (step, time.perf_counter())
    self._waited = 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time in the block as waiting for data."""
    begun = time.perf_counter()
    yield
    self._waited += time.perf_counter() - begun

  def report(self, step: int, losses: Mapping[str, float]) -> dict[str, float]:
    """Prints the line for `step`.

    Returns:
      `images_per_second` and `data_wait`, the fraction of the time in which the loop waited for a batch (printed if
      above 10%), both since the last report or start; empty before the first start.
    """
    now = time.perf_counter()
    measured = {}
    parts = [f'step {step:,}/{self._num_steps:,}', *(f'{name} {value:.3f}' for name, value in losses.items())]
    if self._last and step > self._last[0]:
      seconds_per_step = (now - self._last[1]) / (step - self._last[0])
      speed = self._batch_size / seconds_per_step
      wait = self._waited / (now - self._last[1])
      measured = {'images_per_second': speed, 'data_wait': wait}
      left = datetime.timedelta(seconds=round((self._num_steps - step) * seconds_per_step))
      parts += [f'{speed:,.0f} images/s' if speed >= 10 else f'{speed:.2f} images/s', f'{left} left']
      if wait > 0.1:
        parts.append(f'{wait:.0%} of the time waiting for data')
    self._last = (step, now)
    self._waited = 0.0
    line = '   '.join(parts)
    if self._in_place and not self._quiet:
      print(f'\r{line:<{self._width}}', end='', file=self._stream, flush=True)
      self._width = len(line)
    else:
      self.note(line)
    return measured

  def note(self, text: str) -> None:
    """Prints a separate line, below the progress line if that is being rewritten."""
    if not self._quiet:
      print(f'\n{text}' if self._width else text, file=self._stream, flush=True)
      self._width = 0
