"""Comparable timings: the functions take turns, so that other load on the machine affects all of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_MOST_CALLS = 1000


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of one call, measured several times.

  Attributes:
    seconds: one value per round, the mean over `calls` calls that were dispatched one after the other.
    processor_seconds: host CPU time per call, summed over threads; on a busy CPU it varies less than `seconds`.
    calls: number of calls per round.
  """

  seconds: tuple[float, ...]
  processor_seconds: tuple[float, ...] = ()
  calls: int = 1

  @property
  def median(self) -> float:
    """The median over the rounds, in seconds."""
    return statistics.median(self.seconds)

  def divided(self, by: int) -> Timing:
    """The timing of one of `by` equal parts of a call."""
    return Timing(*(tuple(x / by for x in values) for values in (self.seconds, self.processor_seconds)), self.calls)

  def summary(self) -> dict[str, float | int]:
    """For JSON: median, fastest and slowest seconds, median CPU seconds, rounds, and calls per round."""
    return {
        'seconds': self.median, 'fastest': min(self.seconds), 'slowest': max(self.seconds),
        'processor_seconds': statistics.median(self.processor_seconds), 'rounds': len(self.seconds),
        'calls': self.calls}


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, min_seconds: float = 0.0
) -> dict[str, Timing]:
  """Times each of `runs`, one after the other in every round.

  Args:
    runs: functions without arguments; `jax.block_until_ready` waits for their results.
    rounds: number of measurements per function.
    min_seconds: a measurement makes as many calls as take about this long, and waits only for the last, as in training,
      so that dispatch overlaps computation.

  Returns:
    A Timing for each name, after two warm-up calls, of which the first may compile.
  """
  calls = {}
  for name, run in runs.items():
    jax.block_until_ready(run())
    calls[name] = min(_MOST_CALLS, max(1, math.ceil(min_seconds / max(1e-6, _seconds(run, 1)[0]))))
  found = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      found[name].append(_seconds(run, calls[name]))
  return {name: Timing(*zip(*pairs, strict=True), calls[name]) for name, pairs in found.items()}


def _seconds(run: Callable[[], Any], calls: int) -> tuple[float, float]:
  """Mean seconds and CPU seconds per call."""
  begun, begun_processor = time.perf_counter(), time.process_time()
  for _ in range(calls):
    result = run()
  jax.block_until_ready(result)
  return (time.perf_counter() - begun) / calls, (time.process_time() - begun_processor) / calls
