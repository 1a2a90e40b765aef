"""Consensus between processes: decisions that must be the same everywhere, or the processes would deadlock.

All processes must call each function at the same point; with a single process each is trivial.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # no public API has a barrier; Orbax uses this one, too
from jax.experimental import multihost_utils

from ddgan_jax.config import UserError

_BYTES = 2048  # maximum length of a shared text
_BARRIER_TIMEOUT = 3600  # seconds; compilation may take long
_sync_ids = itertools.count(1)  # JAX's preemption service needs consecutive ids

T = TypeVar('T')


def shared_text(text: str) -> str:
  """The first non-empty text, in process order; '' if all are empty."""
  return next(filter(None, _texts(text)), '')


def check_same(what: str, text: str) -> None:
  """Raises UserError on every process unless all have the same `text` (at most 2 kB)."""
  texts = _texts(text)
  if len(set(texts)) > 1:
    found = ', '.join(f'{text} on process {i}' for i, text in enumerate(texts))
    raise UserError(f'{what} differs between processes ({found}); use the same on all')


def _texts(text: str) -> list[str]:
  """Gathers the texts of all processes."""
  if jax.process_count() == 1:
    return [text]
  buffer = np.zeros(_BYTES, np.uint8)
  encoded = text.encode()[:_BYTES]
  buffer[:len(encoded)] = np.frombuffer(encoded, np.uint8)
  rows = multihost_utils.process_allgather(buffer)
  return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]


def broadcast_from_main(number: int) -> int:
  """Returns process 0's `number` (an int32) on every process."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def run_on_main(function: Callable[[], None]) -> None:
  """Calls `function` on process 0 only; all processes wait until it returns.

  Raises:
    UserError: on every process, if `function` raised UserError or OSError.
  """
  if jax.process_count() == 1:
    function()
    return
  message = ''
  if jax.process_index() == 0:
    try:
      function()
    except UserError as error:
      message = str(error)
    except OSError as error:
      message = f'{error.filename or "a file"}: {error.strerror or error}'
  message = shared_text(message)
  if message:
    raise UserError(message)


def run_on_all(function: Callable[[], T], name: str) -> T:
  """Calls `function` on every process, waits until it has returned on all, and returns its result.

  Args:
    function: may take much longer on some processes.
    name: of the barrier; use each once.

  Raises:
    UserError: on every process, if `function` raised it on one.
  """
  result, message = None, ''
  try:
    result = function()
  except UserError as error:
    if jax.process_count() == 1:
      raise
    message = str(error)
  barrier(name)
  message = shared_text(message)
  if message:
    raise UserError(message)
  return result


def barrier(name: str) -> None:
  """Waits until all processes have called it; use each name once.

  Needed where one process may take much longer, such as compilation with a cache hit on one process only, because
  collectives between CPU processes time out after 30 seconds.
  """
  if jax.process_count() > 1:
    jax_distributed.global_state.client.wait_at_barrier(f'ddgan_jax/{name}', timeout_in_ms=1000 * _BARRIER_TIMEOUT)


class Stop:
  """Turns the first Ctrl-C or SIGTERM into a request to save and stop; a second Ctrl-C interrupts immediately.

  With several processes, a signal to one of them stops all after the same step: JAX's preemption service listens for
  SIGTERM and picks a step that no process has passed. A signal then takes effect only after a step, not during the
  first compilation.

  Attributes:
    signal: the name of the signal, or None until this process may act on it.
  """

  def __init__(self):
    self.signal: str | None = None
    self._is_distributed = jax.process_count() > 1

  def __enter__(self):
    # With several processes, SIGTERM belongs to the preemption service.
    numbers = (signal.SIGINT,) if self._is_distributed else (signal.SIGTERM, signal.SIGINT)
    self._interrupted = False
    self._before = {number: signal.signal(number, self._handle) for number in numbers}
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def should_stop(self) -> bool:
    """Whether to stop after this step; the same on every process. Call once after each step program."""
    if self._is_distributed and not self.signal and multihost_utils.reached_preemption_sync_point(next(_sync_ids)):
      self.signal = 'SIGINT' if self._interrupted else 'SIGTERM'
    return self.signal is not None

  def _handle(self, number, frame):
    del frame
    if self._interrupted and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._interrupted = self._interrupted or number == signal.SIGINT
    if self._is_distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.signal = self.signal or signal.Signals(number).name
