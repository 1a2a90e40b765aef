"""How programs are compiled: with which options, with a persistent cache, and side by side."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax._src import core  # there is no public way to ask whether a transformation is under way

from ddgan_jax.parallel import convolution
from ddgan_jax.utils import files

# Compiler options by platform. One that $XLA_FLAGS sets, or that this XLA does not know, is left out.
XLA_OPTIONS: dict[str, dict[str, str]] = {
    'cpu': {
        # What the compiler gives to the YNNPACK library: products and sums. By default jaxlib 0.10.2 also gives it
        # convolutions, which Eigen computes faster on several cores, and their kernels' gradients on any
        # (benchmarks/speed.md).
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
    },
}


def jit(function: Callable, platform: str | None = None, **kwargs: Any) -> Callable:
  """`jax.jit` for this package's networks: with compiler options, and fast convolutions in loops on CPUs.

  Both apply to this program alone (`XLA_OPTIONS`, `convolution.cpu_convolution_layout`), so no global setting changes.
  Inside another transformation (jit, scan, grad, vmap), where JAX accepts no compiler options, it is a plain `jax.jit`;
  the outermost jit decides how the whole program is compiled.

  Args:
    function, **kwargs: as of `jax.jit`; the result has its method `lower`, too.
    platform: the platform to compile for, by default that of `jax.devices()`.
  """
  return _Program(function, platform, kwargs)


class _Program:
  """What `jit` returns: a program if it is called or lowered by itself, and a part of one elsewhere."""

  def __init__(self, function: Callable, platform: str | None, kwargs: dict[str, Any]):
    functools.update_wrapper(self, function, updated=())
    self._platform, self._kwargs = platform, kwargs
    self._nested = jax.jit(function, **kwargs)

  @functools.cached_property
  def _outermost(self) -> Any:
    # At first use, because asking for the default platform starts the backend.
    found = compiler_options(self._platform or jax.default_backend())

    # A function of its own, because JAX lowers one that is also in another `jax.jit` only once.
    @functools.wraps(self.__wrapped__)
    def program(*args: Any, **kwargs: Any) -> Any:
      return self.__wrapped__(*args, **kwargs)

    return jax.jit(program, **({'compiler_options': found} if found else {}), **self._kwargs)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    if not core.trace_state_clean():
      return self._nested(*args, **kwargs)
    with convolution.cpu_convolution_layout():
      return self._outermost(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
    with convolution.cpu_convolution_layout():
      return self._outermost.lower(*args, **kwargs)


def compiler_options(platform: str) -> dict[str, str]:
  """The `compiler_options` of `jit`: those of `XLA_OPTIONS` that $XLA_FLAGS leaves open and this XLA knows."""
  return {
      name: value for name, value in XLA_OPTIONS.get(platform, {}).items()
      if name not in os.environ.get('XLA_FLAGS', '') and _is_known(platform, name, value)}


@functools.cache
def _is_known(platform: str, option: str, value: str) -> bool:
  """Whether XLA's compiler for a platform knows an option."""
  with jax.default_device(jax.local_devices(backend=platform)[0]):
    try:
      jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      return False
  return True


def use_persistent_cache() -> None:
  """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(files.cache_dir('xla')))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


_futures: list[concurrent.futures.Future] = []


def is_compiling() -> bool:
  """Whether something that `run_in_background` began has not ended."""
  return not all(future.done() for future in _futures)


def run_in_background(function: Callable, *args) -> concurrent.futures.Future:
  """Calls `function(*args)` in a thread that does not keep the process alive.

  XLA compiles one program on one thread and releases the interpreter, so several compile side by side. The thread is a
  daemon because a compilation cannot be cancelled, and a run that is being stopped should not wait for it; `app.start`
  ends a process that is still busy without the interpreter's usual shutdown, which would abort it.
  """
  future: concurrent.futures.Future = concurrent.futures.Future()
  # Those that are done are forgotten here, or their programs would stay in memory as long as the process.
  _futures[:] = [*(other for other in _futures if not other.done()), future]

  def work():
    try:
      future.set_result(function(*args))
    except BaseException as error:  # handed to whoever asks for the result
      future.set_exception(error)

  threading.Thread(target=work, daemon=True).start()
  return future


def cost_summary(compiled: Any, seconds: float) -> tuple[str, dict[str, float]]:
  """A sentence on what a compiled step costs, and its figures.

  The figures are `compile_seconds`, `step_memory_mib` (state, batch and temporaries on one device, by the compiler's
  account) and `device_peak_mib` (as measured so far), the last two where the backend knows them.
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
  """Bytes of a program's arguments, results and temporaries on a device, and how many of them are temporary."""
  memory = compiled.memory_analysis()
  state = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return state + memory.temp_size_in_bytes, memory.temp_size_in_bytes
