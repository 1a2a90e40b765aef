"""Tracks steps in flight: bounds their number, checks their metrics and reports them."""

from __future__ import annotations

import collections
import math
import time

import jax
import numpy as np

from ddgan_jax.config import Config
from ddgan_jax.objectives.base import Metrics
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting.progress import Progress
from ddgan_jax.reporting.tensorboard import EventWriter
from ddgan_jax.training.cadence import Cadence
from ddgan_jax.training.programs import Program, StepPrograms
from ddgan_jax.training.rollback import Diverged

# Steps that the host may dispatch ahead: enough to hide host time, few enough to bound memory.
_IN_FLIGHT = 2


class Meter:
  """A queue of dispatched steps; the metrics of finished steps are checked, averaged and reported.

  The meter waits for the first step of a process and reports the time since the start and the program's cost.

  Args:
    config: the run; uses `train`.
    programs: the step programs.
    progress: receives a line every `log_every` steps, with means since the last line.
    writer: receives the same means as scalars.
    started: `time.perf_counter()` at the start of the process.
  """

  def __init__(self, config: Config, programs: StepPrograms, progress: Progress, writer: EventWriter, started: float):
    self._cadence = Cadence(config.train)
    self._programs = programs
    self._progress = progress
    self._writer = writer
    self._started = started
    self._in_flight: collections.deque[tuple[int, Metrics, Program]] = collections.deque()
    self._window: list[tuple[int, Metrics]] = []  # since the last progress line

  def add(self, step: int, metrics: Metrics, program: Program) -> None:
    """Adds a dispatched call of `program` that ends at `step`; waits while too many calls are in flight.

    Raises Diverged if the metrics of an earlier step are not finite.
    """
    self._in_flight.append((step, metrics, program))
    self.drain(_IN_FLIGHT if self._progress.started else 0)

  def drain(self, max_in_flight: int = 0) -> None:
    """Waits until at most `max_in_flight` calls are in flight, and reports the finished steps that are due.

    Raises Diverged if metrics are not finite, checked at every report and, if `max_in_flight` is 0, for all steps.
    """
    while len(self._in_flight) > max_in_flight:
      step, metrics, program = self._in_flight.popleft()
      jax.block_until_ready(metrics)
      self._window += self._programs.unstack_metrics(metrics, step)
      if not self._progress.started:
        self._report_first(step, program)
        self._progress.start(step)
      if self._cadence.after(step).log:
        means = finite_means(self._window)
        shown = self._progress.report(step, {name: means[name] for name in ('loss_d', 'loss_g') if name in means})
        self._writer.scalars(step, means | shown)
        self._window.clear()
    if max_in_flight == 0:
      finite_means(self._window)

  def reset(self) -> None:
    """Drops all steps that have not been reported, after a rollback."""
    self._in_flight.clear()
    self._window.clear()

  def _report_first(self, step: int, program: Program) -> None:
    first_step = step - self._programs.steps_per_call
    what = f'Resumed at step {first_step:,}; next step' if first_step else 'First step'
    self._progress.note(f'{what} done {time.perf_counter() - self._started:.1f} s after the start.')
    text, figures = compilation.cost_summary(program.compiled, program.compile_seconds)
    self._progress.note(text)
    self._writer.scalars(step, figures)


def finite_means(window: list[tuple[int, Metrics]]) -> dict[str, float]:
  """The mean of each metric over the steps that have it.

  Args:
    window: (step, scalar metrics), oldest first; only R1 steps have the penalty.

  Raises:
    Diverged: metrics are not finite; it names those of the first such step.
  """
  fetched = jax.device_get(window)
  for step, metrics in fetched:
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if broken:
      raise Diverged(', '.join(broken), int(step))
  names = sorted({name for _, metrics in fetched for name in metrics})
  return {name: float(np.mean([metrics[name] for _, metrics in fetched if name in metrics])) for name in names}
