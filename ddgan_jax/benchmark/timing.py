"""Times that can be compared: calls that take turns, so that other work on the machine slows all of them alike."""

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
    seconds: one a round; each is the mean over `calls` calls that were dispatched one after the other.
    processor_seconds: what the host's processors spent on a call meanwhile, all threads together; on a CPU that is busy
      with other work as well it varies less.
    calls: how many those were.
  """

  seconds: tuple[float, ...]
  processor_seconds: tuple[float, ...] = ()
  calls: int = 1

  @property
  def median(self) -> float:
    """The median over the rounds, in seconds."""
    return statistics.median(self.seconds)

  def divided(self, by: int) -> Timing:
    """The times of one of `by` equal parts of a call."""
    return Timing(*(tuple(x / by for x in values) for values in (self.seconds, self.processor_seconds)), self.calls)

  def summary(self) -> dict[str, float | int]:
    """For JSON: median, fastest and slowest in seconds, median of processor seconds, rounds and calls a round."""
    return {
        'seconds': self.median, 'fastest': min(self.seconds), 'slowest': max(self.seconds),
        'processor_seconds': statistics.median(self.processor_seconds), 'rounds': len(self.seconds),
        'calls': self.calls}


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, min_seconds: float = 0.0
) -> dict[str, Timing]:
  """Times each of `runs`, one after the other in every round.

  Args:
    runs: functions without arguments; what they return is waited for (`jax.block_until_ready`).
    rounds: how many measurements of each.
    min_seconds: a measurement is of so many calls that it takes about that long; the wait is only for the last one,
      as in training, so that dispatching hides behind computing.

  Returns:
    A Timing for each name. Two calls of each come before and are not counted: the first may compile.
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
  """Seconds and processor seconds of one call."""
  begun, begun_processor = time.perf_counter(), time.process_time()
  for _ in range(calls):
    result = run()
  jax.block_until_ready(result)
  return (time.perf_counter() - begun) / calls, (time.process_time() - begun_processor) / calls
