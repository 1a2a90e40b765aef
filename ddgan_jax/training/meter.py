"""Follows the steps in flight: bounds how many there are, checks their metrics, reports them."""

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

# Steps that the host may be ahead of the devices: enough to hide the host, few enough to bound memory.
_IN_FLIGHT = 2


class Meter:
  """A queue of dispatched steps; a step that leaves it is checked, averaged and reported.

  The first step of a process is waited for, and reported with the time since the start and the program's cost.

  Args:
    config: the run; uses `train`.
    programs: whose steps are reported.
    progress: gets a line every `log_every` steps, with means since the last line.
    writer: gets the same means as scalars.
    started: `time.perf_counter()` at the start of the process.
  """

  def __init__(self, config: Config, programs: StepPrograms, progress: Progress, writer: EventWriter, started: float):
    self._cadence = Cadence(config.train)
    self._programs = programs
    self._progress = progress
    self._writer = writer
    self._started = started
    self._in_flight: collections.deque[tuple[int, Metrics, Program]] = collections.deque()
    self._window: list[tuple[int, Metrics]] = []  # since the last line

  def add(self, step: int, metrics: Metrics, program: Program) -> None:
    """Adds a dispatched call of `program`, after which `step` steps are done; waits while too many are in flight.

    Raises Diverged if metrics of an earlier step are not finite.
    """
    self._in_flight.append((step, metrics, program))
    self.drain(_IN_FLIGHT if self._progress.started else 0)

  def drain(self, most: int = 0) -> None:
    """Waits until at most `most` calls are in flight, and reports those whose turn it is.

    Raises Diverged if metrics are not finite; checked at every report, and for all steps if `most` is 0.
    """
    while len(self._in_flight) > most:
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
    if most == 0:
      finite_means(self._window)

  def reset(self) -> None:
    """Forgets all steps that have not been reported: the run continues from another state."""
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
    window: (step, its metrics as scalars), oldest first; R1 steps have a metric more.

  Raises:
    Diverged: names the metrics that are not finite at the first such step.
  """
  fetched = jax.device_get(window)
  for step, metrics in fetched:
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if broken:
      raise Diverged(', '.join(broken), int(step))
  names = sorted({name for _, metrics in fetched for name in metrics})
  return {name: float(np.mean([metrics[name] for _, metrics in fetched if name in metrics])) for name in names}
