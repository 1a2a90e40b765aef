"""Measures compilation, training, sampling, memory and data loading of a run on this machine."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from ddgan_jax import sampling, train_state
from ddgan_jax.benchmark import flops, peak_flops, timing
from ddgan_jax.config import Config
from ddgan_jax.data import pipeline, sources
from ddgan_jax.models import conditions, labels
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.training.programs import CALL, PLAIN, R1, Program, StepPrograms

_CACHE_FLAGS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')


def random_images(config: Config, count: int = 2048) -> sources.Source:
  """Random uint8 images of a config's size; grey if the config stacks them."""
  height, width, channels = config.image_shape
  shape = (count, height, width, 1 if config.data.stack == 3 else channels)
  rng = np.random.default_rng(0)
  source = sources.ArraySource(rng.integers(0, 256, shape, np.uint8), name='random images')
  if config.data.condition == 'pairs':
    source.conditions = sources.ArraySource(rng.integers(0, 256, (count, *config.data.condition_shape), np.uint8))
  return source


class Programs(StepPrograms):
  """The training programs of a run, and its sampler at any batch size, each compiled on first use.

  A sampler is called `sample_<batch size>`; it runs on the first device as `program(ema_params, seed) -> images`.

  Attributes:
    compile_times: results of `measure_compile_time`, by program name.
  """

  def __init__(self, config: Config):
    super().__init__(config, sharding.make_mesh(fsdp=config.parallel.fsdp))
    self.compile_times: dict[str, dict[str, float]] = {}

  @property
  def steps(self) -> tuple[str, ...]:
    """Names of the training programs: `plain` and/or `r1`, or `call` for `train.steps_per_call` steps."""
    return tuple(sorted(self.names()))

  @property
  def r1_share(self) -> float:
    """The fraction of steps with R1."""
    return 1 / self.penalty.interval if self.penalty.gamma else 0.0

  def __getitem__(self, name: str) -> Program:
    self.start([name])
    return self._futures[name].result()

  def compile(self, names: Iterable[str]) -> None:
    """Compiles the programs that are not compiled yet, in parallel."""
    names = list(names)
    self.start(names)
    for name in names:
      self._futures[name].result()

  def measure_compile_time(self, name: str) -> None:
    """Times compilation with an empty persistent cache and from that cache; keeps the program for later use."""
    times = self.compile_times[name] = {}
    with _empty_cache():
      for warmth in ('cold', 'warm'):
        self._futures.pop(name, None)
        times[f'{warmth}_seconds'] = self[name].compile_seconds
        times[f'{warmth}_trace_seconds'] = self[name].trace_seconds
        jax.clear_caches()

  def lower(self, name: str) -> jax.stages.Lowered:
    """Lowers a training program or a sampler."""
    if not name.startswith('sample_'):
      return super().lower(name)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    run = functools.partial(sample, self.config, int(name.removeprefix('sample_')))
    return compilation.jit(run, out_shardings=here).lower(train_state.abstract_state(self.config, here).ema_params, 0)


def sample(config: Config, batch_size: int, ema_params: Any, seed: Any) -> jax.Array:
  """Samples a batch, with its noise: the program that the benchmark times."""
  generator_fn, schedule = train_state.make_sampler(
      config, ema_params, label=labels.timing_label(config.generator), condition=conditions.timing_condition(config))
  return sampling.sample_in_batches(
      seed, np.arange(batch_size, dtype=np.int32), generator_fn, schedule, config.image_shape, config.generator.nz)


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
  """Uses an empty persistent compilation cache in a temporary folder."""
  before = {name: getattr(jax.config, name) for name in _CACHE_FLAGS}
  with tempfile.TemporaryDirectory() as folder:
    for name, value in zip(_CACHE_FLAGS, (folder, 0.0), strict=True):
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


class _Training:
  """Runs training programs on the first batch; each continues from the state of the previous call."""

  def __init__(self, programs: Programs, source: sources.Source):
    self._programs = programs
    self._state = programs.create_state()
    self._batch = first_batch(programs, source)

  def run(self, name: str) -> Any:
    """Calls a program; returns its metrics."""
    self._state, metrics = self._programs[name](self._state, *self._batch)
    return metrics


def measure_training(
    programs: Programs, source: sources.Source, rounds: int, min_seconds: float
) -> dict[str, Any]:
  """Measures the speed of each kind of step, and their average with R1 once in `lazy_reg` steps, without data loading.

  Times of a `call` are per step.
  """
  config = programs.config
  training = _Training(programs, source)
  timings = timing.time_interleaved(
      {name: functools.partial(training.run, name) for name in programs.steps}, rounds, min_seconds)
  share, several = programs.r1_share, programs.steps_per_call
  mixed = sum(part * flops.step_flops(config, r1) for r1, part in ((False, 1 - share), (True, share)) if part)
  found = {}
  for name in programs.steps:
    times = timings[name].divided(several)
    per_image = mixed if name == CALL else flops.step_flops(config, name == R1)
    found[name] = {**times.summary(), **speed(config, times.median, per_image)}
  if len(found) == 2:
    seconds = share * found[R1]['seconds'] + (1 - share) * found[PLAIN]['seconds']
    found['amortised'] = {'seconds': seconds, **speed(config, seconds, mixed)}
  return found


def speed(config: Config, seconds: float, per_image: float) -> dict[str, Any]:
  """Throughput of a step from its seconds and FLOPs per image; utilisation is None if the peak is unknown."""
  devices = jax.device_count()
  per_second = per_image * config.data.batch_size / seconds / devices
  return {
      'images_per_second': config.data.batch_size / seconds, 'operations_per_image': per_image,
      'operations_per_second_per_device': per_second, 'utilisation': _utilisation(config, per_second)}


def _utilisation(config: Config, per_second: float) -> float | None:
  peak = peak_flops.peak(jax.devices()[0].device_kind).get(config.parallel.dtype)
  return per_second / peak if peak else None


def measure_data_wait(programs: Programs, source: sources.Source, num_steps: int) -> dict[str, Any]:
  """Measures the training loop with its data pipeline, from reading to the copy to the devices.

  Returns:
    `source`, `steps`, `images_per_second`, and `data_wait`, the fraction of time spent waiting for a batch.
  """
  config = programs.config
  state = programs.create_state()
  waited, several = 0.0, programs.steps_per_call
  num_steps = -(-num_steps // several) * several
  with contextlib.closing(programs.batches(source, [(0, num_steps + several)])) as batches:
    for step in range(0, num_steps + several, several):
      before = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - before
      state, metrics = programs[programs.name(step)](state, *batch)
      if step == 0:  # the pipeline has started
        jax.block_until_ready(metrics)
        waited, begun = 0.0, time.perf_counter()
    jax.block_until_ready(metrics)
  seconds = time.perf_counter() - begun
  return {'source': source.name, 'steps': num_steps, 'images_per_second': num_steps * config.data.batch_size / seconds,
          'data_wait': waited / seconds}


def measure_sampling(
    programs: Programs, batch_sizes: tuple[int, ...], rounds: int, min_seconds: float
) -> dict[str, dict[str, Any]]:
  """Images per second and latency of the sampler, including its noise, on one device; one entry per batch size."""
  config = programs.config
  here = jax.local_devices()[0]
  ema_params = jax.device_put(jax.jit(lambda: train_state.create(config).ema_params)(), here)
  runs: dict[str, Callable[[], Any]] = {
      f'sample_{size}': functools.partial(programs[f'sample_{size}'], ema_params, 0) for size in batch_sizes}
  found = {}
  for size, (name, times) in zip(batch_sizes, timing.time_interleaved(runs, rounds, min_seconds).items(), strict=True):
    per_second = flops.sample_flops(config) * size / times.median
    found[name] = {
        'batch_size': size, **times.summary(), 'images_per_second': size / times.median,
        'operations_per_second_per_device': per_second, 'utilisation': _utilisation(config, per_second)}
  return found


def measure_memory(programs: Programs) -> dict[str, Any]:
  """MiB per device: of each step by XLA's memory analysis, and the peak in use, or None if the backend reports none."""
  found: dict[str, Any] = {}
  for name in programs.steps:
    total, temporary = compilation.memory_bytes(programs[name].compiled)
    found[name] = {'step_mib': total / 2**20, 'temporary_mib': temporary / 2**20}
  measured = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  found['device_peak_mib'] = measured / 2**20 if measured else None
  return found


def write_profile(programs: Programs, source: sources.Source, folder: str, num_steps: int = 3) -> None:
  """Writes a trace of a few steps of each kind to `folder`, for TensorBoard's profiler."""
  training = _Training(programs, source)
  for traced in (False, True):
    with jax.profiler.trace(folder) if traced else contextlib.nullcontext():
      for name in programs.steps:
        for step in range(num_steps if traced else 1):
          with jax.profiler.StepTraceAnnotation(name, step_num=step):
            jax.block_until_ready(training.run(name))


def device_info() -> dict[str, Any]:
  """Platform, kind, number and published peak of the devices."""
  device = jax.devices()[0]
  return {'platform': device.platform, 'kind': device.device_kind, 'devices': jax.device_count(),
          'peak': peak_flops.peak(device.device_kind)}


def first_batch(programs: StepPrograms, source: sources.Source) -> list[jax.Array]:
  """The first batch of a run, as arguments of its programs, without the threads (and the packages) of the pipeline."""
  data, seed = programs.config.data, programs.config.seed
  rows = pipeline.process_rows(data.batch_size, jax.process_index(), jax.process_count())
  on_host = (pipeline.global_batch(source, data, seed, step, rows) for step in range(programs.steps_per_call))
  with contextlib.closing(programs.on_devices(on_host)) as batches:
    return next(batches)
