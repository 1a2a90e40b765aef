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
    calls: how many those were.
  """

  seconds: tuple[float, ...]
  calls: int = 1

  @property
  def median(self) -> float:
    """The median over the rounds, in seconds."""
    return statistics.median(self.seconds)

  def summary(self) -> dict[str, float | int]:
    """For JSON: median, fastest and slowest in seconds, rounds and calls a round."""
    return {
        'seconds': self.median, 'fastest': min(self.seconds), 'slowest': max(self.seconds),
        'rounds': len(self.seconds), 'calls': self.calls}


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, least_seconds: float = 0.0
) -> dict[str, Timing]:
  """Times each of `runs`, one after the other in every round.

  Args:
    runs: functions without arguments; what they return is waited for (`jax.block_until_ready`).
    rounds: how many measurements of each.
    least_seconds: a measurement is of so many calls that it takes about that long; the wait is only for the last one,
      as in training, so that dispatching hides behind computing.

  Returns:
    A Timing for each name. Two calls of each come before and are not counted: the first may compile.
  """
  calls = {}
  for name, run in runs.items():
    jax.block_until_ready(run())
    calls[name] = min(_MOST_CALLS, max(1, math.ceil(least_seconds / max(1e-6, _seconds(run, 1)))))
  found = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      found[name].append(_seconds(run, calls[name]) / calls[name])
  return {name: Timing(tuple(seconds), calls[name]) for name, seconds in found.items()}


def _seconds(run: Callable[[], Any], calls: int) -> float:
  begun = time.perf_counter()
  for _ in range(calls):
    result = run()
  jax.block_until_ready(result)
  return time.perf_counter() - begun
