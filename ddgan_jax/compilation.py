"""Getting to the first step soon: a persistent cache, and programs compiled side by side."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable

import jax


def use_persistent_cache() -> None:
  """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
  if not jax.config.jax_compilation_cache_dir:
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(base, 'ddgan_jax', 'xla'))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


_futures: list[concurrent.futures.Future] = []


def is_busy() -> bool:
  """Whether something that `in_background` began has not ended."""
  return not all(future.done() for future in _futures)


def in_background(function: Callable, *args) -> concurrent.futures.Future:
  """Calls `function(*args)` in a thread that does not keep the process alive.

  XLA compiles one program on one thread and releases the interpreter, so several compile side by side. The thread is a
  daemon because a compilation cannot be cancelled, and a run that is told to stop should not wait for it; `command.run`
  ends a process that is still busy without the interpreter's usual shutdown, which would abort it.
  """
  future: concurrent.futures.Future = concurrent.futures.Future()
  _futures.append(future)

  def work():
    try:
      future.set_result(function(*args))
    except BaseException as error:  # handed to whoever asks for the result
      future.set_exception(error)

  threading.Thread(target=work, daemon=True).start()
  return future
