"""Compilation: compiler options, the persistent cache, and compiling in the background."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
from jax._src import core  # no public API shows whether a trace is in progress

from ddgan_jax.parallel import convolution
from ddgan_jax.utils import files

# Compiler options by platform. Options set in $XLA_FLAGS or unknown to this XLA are omitted.
XLA_OPTIONS: dict[str, dict[str, str]] = {
    'cpu': {
        # Use YNNPACK for dots and reductions only. By default jaxlib 0.10.2 also uses it for convolutions, where Eigen
        # is faster on several cores, and for kernel gradients, where Eigen is always faster (benchmarks/speed.md).
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
    },
    # Without these the CIFAR-10 steps had not compiled on an H100 after 330 s (benchmarks/gpu.md).
    'gpu': {
        'xla_gpu_autotune_level': '2',  # time each candidate kernel, but do not also check its result
        'xla_gpu_enable_triton_gemm': 'False',
    },
}


def jit(function: Callable, platform: str | None = None, **kwargs: Any) -> Callable:
  """`jax.jit` with `XLA_OPTIONS`, and with fast convolutions in loops on CPUs (`convolution.cpu_convolution_layout`).

  Both apply to this program only; no global setting changes. Inside another transformation (jit, scan, grad, vmap),
  where JAX accepts no compiler options, it is a plain `jax.jit`, and the outermost jit sets the options.

  Args:
    function, **kwargs: see `jax.jit`; the result also has a `lower` method.
    platform: the platform to compile for, by default that of `jax.devices()`.
  """
  return _Program(function, platform, kwargs)


class _Program:
  """The result of `jit`: a separate program at the top level, part of the outer program inside a trace."""

  def __init__(self, function: Callable, platform: str | None, kwargs: dict[str, Any]):
    functools.update_wrapper(self, function, updated=())
    self._platform, self._kwargs = platform, kwargs
    self._nested = jax.jit(function, **kwargs)

  @functools.cached_property
  def _outermost(self) -> Any:
    # Computed at first use, because `jax.default_backend()` initializes the backend.
    found = compiler_options(self._platform or jax.default_backend())

    # A new function, because JAX caches the lowering by function, and `_nested` uses the original.
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
  """The options of `XLA_OPTIONS` and, for GPUs, of the autotuning cache, that $XLA_FLAGS does not set and XLA knows."""
  options = {**XLA_OPTIONS.get(platform, {}), **(_autotuning_cache() if platform == 'gpu' else {})}
  return {
      name: value for name, value in options.items()
      if name not in os.environ.get('XLA_FLAGS', '') and _is_known(platform, name, value)}


def _autotuning_cache() -> dict[str, str]:
  """The option that keeps XLA's choices of kernels beside the persistent compilation cache, for other programs.

  Their file names omit the version of the compiler, hence a folder for each jaxlib.
  """
  folder = jax.config.jax_compilation_cache_dir
  if not folder or '://' in folder:  # XLA writes to local folders only
    return {}
  return {'xla_gpu_per_fusion_autotune_cache_dir': os.path.join(folder, f'autotuning-{jaxlib.__version__}')}


@functools.cache
def _is_known(platform: str, option: str, value: str) -> bool:
  """Whether XLA accepts an option on a platform; if the platform has no devices, asks the default one."""
  try:
    device = jax.local_devices(backend=platform)[0]
  except RuntimeError:
    device = jax.local_devices()[0]
  with jax.default_device(device):
    try:
      jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      return False
  return True


def use_persistent_cache() -> None:
  """Enables JAX's persistent compilation cache, in $JAX_COMPILATION_CACHE_DIR or the user's cache directory."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(files.cache_dir('xla')))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  # JAX would put the path of the autotuning cache into every key, on CPUs too; see `_autotuning_cache`.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


_futures: list[concurrent.futures.Future] = []


def is_compiling() -> bool:
  """Whether a call of `run_in_background` is still running."""
  return not all(future.done() for future in _futures)


def run_in_background(function: Callable, *args) -> concurrent.futures.Future:
  """Calls `function(*args)` in a daemon thread and returns its future.

  XLA compiles a program on one thread and releases the GIL, so several programs compile in parallel. A compilation
  cannot be cancelled, and a stopped run should not wait for it, hence the daemon. `app.start` ends a process that is
  still compiling without the interpreter's shutdown, which would abort with a core dump.
  """
  future: concurrent.futures.Future = concurrent.futures.Future()
  # Drop finished futures, which would keep their programs in memory.
  _futures[:] = [*(other for other in _futures if not other.done()), future]

  def work():
    try:
      future.set_result(function(*args))
    except BaseException as error:  # raised by future.result()
      future.set_exception(error)

  threading.Thread(target=work, daemon=True).start()
  return future


def cost_summary(compiled: Any, seconds: float) -> tuple[str, dict[str, float]]:
  """Describes the cost of a compiled step in a sentence and as scalars.

  The scalars are `compile_seconds` and, if the backend reports them, `step_memory_mib` (state, batch and temporaries on
  one device, from the compiler's memory analysis) and `device_peak_mib` (peak memory so far).
  """
  text, figures = f'Compiled the training step in {seconds:.1f} s', {'compile_seconds': seconds}
  if compiled.memory_analysis() is not None:
    total, temporary = memory_bytes(compiled)
    figures['step_memory_mib'] = total / 2**20
    text += f'; it needs {total / 2**20:,.1f} MiB per device ({temporary / 2**20:,.1f} MiB temporary)'
  measured = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in measured:
    figures['device_peak_mib'] = measured['peak_bytes_in_use'] / 2**20
    text += f'; the peak so far is {figures["device_peak_mib"]:,.1f} MiB'
  return text + '.', figures


def memory_bytes(compiled: Any) -> tuple[int, int]:
  """A program's memory on one device, in bytes: (arguments, results and temporaries; temporaries alone)."""
  memory = compiled.memory_analysis()
  state = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return state + memory.temp_size_in_bytes, memory.temp_size_in_bytes
