"""What several processes decide together, so that none waits for another that has gone its own way.

Every function here is called by all processes at the same place; with a single process each is trivial.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # the only way to the barrier, which Orbax takes too
from jax.experimental import multihost_utils

from ddgan_jax.config import UserError

_BYTES = 2048  # of a text that is passed on
_BARRIER_TIMEOUT = 3600  # seconds that the others may take to compile
_sync_ids = itertools.count(1)  # JAX's pre-emption service wants questions by number, one after the other from 1


def shared_text(text: str) -> str:
  """The first text that is not empty, in the order of the processes; '' if none has one."""
  return next(filter(None, _texts(text)), '')


def check_same(what: str, text: str) -> None:
  """Raises UserError, on every process, unless all have the same `text` (of up to 2 kB)."""
  texts = _texts(text)
  if len(set(texts)) > 1:
    found = '; '.join(f'process {i} has {text}' for i, text in enumerate(texts))
    raise UserError(f'{what} must be the same on all processes: {found}')


def _texts(text: str) -> list[str]:
  """The texts of all processes."""
  if jax.process_count() == 1:
    return [text]
  buffer = np.zeros(_BYTES, np.uint8)
  encoded = text.encode()[:_BYTES]
  buffer[:len(encoded)] = np.frombuffer(encoded, np.uint8)
  rows = multihost_utils.process_allgather(buffer)
  return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]


def broadcast_from_main(number: int) -> int:
  """Process 0's `number`, on every process; below 2**31."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def run_on_main(function: Callable[[], None]) -> None:
  """Calls `function` on process 0 alone, and returns on every process when it is done.

  Raises:
    UserError: what `function` raised, on every process.
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


def barrier(name: str) -> None:
  """Returns when all processes are here; each name once.

  For what takes one of them much longer than another, such as compiling when only one finds its program in the cache:
  collectives between CPU processes give up after 30 seconds.
  """
  if jax.process_count() > 1:
    jax_distributed.global_state.client.wait_at_barrier(f'ddgan_jax/{name}', timeout_in_ms=1000 * _BARRIER_TIMEOUT)


class Stop:
  """Turns the first Ctrl-C or SIGTERM into a request to save and leave; a second Ctrl-C interrupts at once.

  With several processes a signal to any one of them counts for all, and they agree on the step after which they leave:
  JAX's pre-emption service listens for SIGTERM, spreads the news and picks a step that none has passed. Then a signal
  shows only after a step, and not while the first one is being compiled.

  Attributes:
    signal: the name of the signal, once this process may act on it.
  """

  def __init__(self):
    self.signal: str | None = None
    self._is_distributed = jax.process_count() > 1

  def __enter__(self):
    # SIGTERM belongs to the pre-emption service where there is one.
    numbers = (signal.SIGINT,) if self._is_distributed else (signal.SIGTERM, signal.SIGINT)
    self._interrupted = False
    self._before = {number: signal.signal(number, self._handle) for number in numbers}
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def should_stop(self) -> bool:
    """Whether to leave after this step; the same on every process, which all ask after every call of a step."""
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
