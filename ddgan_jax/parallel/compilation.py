"""How programs are compiled: with which options, with a persistent cache, and side by side."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# What XLA's CPU compiler gives to the YNNPACK library: products and sums. By default jaxlib 0.10.2 also gives it
# convolutions, which Eigen computes faster on several cores, and their kernels' gradients on any (benchmarks/speed.md).
_CPU_OPTION = 'xla_cpu_experimental_ynn_fusion_type'
_CPU_VALUE = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'


def jit(function: Callable, platform: str | None = None, **kwargs: Any) -> Callable:
  """`jax.jit` with the compiler options that suit this package's networks.

  On a CPU JAX refuses to use what it gives inside another transformation (jit, scan, grad, `make_jaxpr`).

  Args:
    function: to be compiled.
    platform: that it is compiled for, by default that of `jax.devices()`.
    **kwargs: as of `jax.jit`.
  """
  return jax.jit(function, compiler_options=options(platform or jax.default_backend()), **kwargs)


def options(platform: str) -> dict[str, str]:
  """The `compiler_options` of `jit`; none where $XLA_FLAGS has a say in it, or this jaxlib does not know them."""
  if platform != 'cpu' or _CPU_OPTION in os.environ.get('XLA_FLAGS', '') or not _is_known(_CPU_OPTION, _CPU_VALUE):
    return {}
  return {_CPU_OPTION: _CPU_VALUE}


@functools.cache
def _is_known(option: str, value: str) -> bool:
  """Whether XLA's CPU compiler knows an option."""
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    try:
      jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      return False
  return True


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
  daemon because a compilation cannot be cancelled, and a run that is told to stop should not wait for it; `app.run`
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


def timed(compile_: Callable[[], Any]) -> tuple[Any, float]:
  """What `compile_` gives, and the seconds that it took."""
  begun = time.perf_counter()
  return compile_(), time.perf_counter() - begun


def describe(compiled: Any, seconds: float) -> tuple[str, dict[str, float]]:
  """A sentence on what a compiled step costs, and its figures.

  Args:
    compiled: a `jax.stages.Compiled`.
    seconds: how long that took; little when it came from the cache.

  Returns:
    The sentence, and `compile_seconds`, `step_memory_mib` (state, batch and temporaries on one device, by the
    compiler's account) and `device_peak_mib` (as measured so far), the last two where the backend knows them.
  """
  text, figures = f'The step was compiled in {seconds:.1f} s', {'compile_seconds': seconds}
  if compiled.memory_analysis() is not None:
    total, temporary = memory_bytes(compiled)
    figures['step_memory_mib'] = total / 2**20
    text += f' and takes {total / 2**20:,.1f} MiB on each device, {temporary / 2**20:,.1f} of them temporary'
  measured = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in measured:
    figures['device_peak_mib'] = measured['peak_bytes_in_use'] / 2**20
    text += f'; {figures["device_peak_mib"]:,.1f} MiB were in use at most'
  return text + '.', figures


def memory_bytes(compiled: Any) -> tuple[int, int]:
  """Bytes that a device needs for a program, by the compiler's account, and how many of them are temporary.

  All are arguments, results that do not reuse them, and temporaries.
  """
  memory = compiled.memory_analysis()
  state = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return state + memory.temp_size_in_bytes, memory.temp_size_in_bytes
