"""What a run costs on this machine: compiling, training, sampling, memory, waiting for data."""

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

from ddgan_jax import objectives, sampling, train_state, train_step
from ddgan_jax.benchmark import hardware, operations, timing
from ddgan_jax.config import Config
from ddgan_jax.data import pipeline, sources
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, sharding

_CACHE_FLAGS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
_NAMES = {False: 'plain', True: 'r1'}


class RandomImages(sources.Source):
  """Random uint8 images of a config's size, grey where it stacks them, which the pipeline treats like other sources."""

  def __init__(self, config: Config, count: int = 2048):
    height, width, channels = config.image_shape
    shape = (height, width, 1 if config.data.stack == 3 else channels)
    super().__init__('random images', '', shape)
    self._images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)

  def __len__(self) -> int:
    return len(self._images)

  def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return self._images[indices], np.zeros(len(indices), np.int32)


class Programs:
  """The compiled programs of a run, each compiled when it is first asked for.

  Attributes:
    config: the run.
    mesh: all its devices; sampling is measured on the first one.
    compile_times: what `measure_compiling` has found, by the program's name.
  """

  def __init__(self, config: Config):
    self.config = config
    self.mesh = sharding.make_mesh(fsdp=config.parallel.fsdp)
    self.compile_times: dict[str, dict[str, float]] = {}
    self._compiled: dict[str, Any] = {}
    self._state = train_state.abstract(config, sharding.of_state(self.mesh))

  @property
  def steps(self) -> tuple[str, ...]:
    """Names of the training programs: `plain` and `r1`, or one of them; or `call`, of `train.steps_per_call` steps."""
    if self.config.train.steps_per_call > 1:
      return ('call',)
    return tuple(sorted(_NAMES[r1] for r1 in objectives.make(self.config).penalty.variants(0)))

  @property
  def r1_share(self) -> float:
    """The share of steps that have R1."""
    penalty = objectives.make(self.config).penalty
    return 1 / penalty.every if penalty.gamma else 0.0

  def of_step(self, number: int) -> str:
    """The name of the program that takes step `number`, alone or as the first of a call."""
    name = _NAMES[train_step.has_r1(self.config.optim, number)]
    return name if name in self.steps else self.steps[0]

  def __getitem__(self, name: str) -> Any:
    self.compile([name])
    return self._compiled[name]

  def compile(self, names: Iterable[str]) -> None:
    """Compiles those programs that are not yet, side by side."""
    lowered = {name: self._lower(name) for name in names if name not in self._compiled}
    futures = {name: compilation.in_background(program.compile) for name, program in lowered.items()}
    self._compiled |= {name: future.result() for name, future in futures.items()}

  def measure_compiling(self, name: str) -> None:
    """Compiles a program with an empty persistent cache, and again from that cache; keeps it for the other numbers."""
    with _empty_cache():
      for warmth in ('cold', 'warm'):
        begun = time.perf_counter()
        lowered = self._lower(name)
        traced = time.perf_counter()
        self._compiled[name] = lowered.compile()
        times = self.compile_times.setdefault(name, {})
        times[f'{warmth}_seconds'] = time.perf_counter() - traced
        times[f'{warmth}_trace_seconds'] = traced - begun
        jax.clear_caches()

  def create_state(self) -> train_state.TrainState:
    """The state at step 0, as the run lays it over its devices."""
    return jax.jit(lambda: train_state.create(self.config, self.mesh), out_shardings=sharding.of_tree(self._state))()

  def _lower(self, name: str) -> Any:
    config = self.config
    if name.startswith('sample_'):
      here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      run = functools.partial(_sample, config, int(name.removeprefix('sample_')))
      return compilation.jit(run, out_shardings=here).lower(train_state.abstract(config, here).ema_params, 0)
    several = name == 'call'
    step_fn = (train_step.make_steps_fn(config, self.mesh) if several
               else train_step.make_step_fn(config, self.mesh, name == 'r1'))
    return step_fn.lower(self._state, *train_step.inputs(config, self.mesh, stacked=several).values())


def _sample(config: Config, batch_size: int, ema_params: Any, seed: Any) -> jax.Array:
  generator_fn, schedule = train_state.make_sampler(config, ema_params, label=labels.for_timing(config.generator))
  return sampling.sample_many(
      seed, np.arange(batch_size, dtype=np.int32), generator_fn, schedule, config.image_shape, config.generator.nz)


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
  """A persistent compilation cache in a folder of its own, for everything that is compiled inside."""
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


def measure_training(
    programs: Programs, source: sources.Source, rounds: int, least_seconds: float
) -> dict[str, Any]:
  """Speed of each kind of step, and of their mixture with R1 in one step of `lazy_reg`; images stay on the devices.

  Times of a `call` are those of one of its steps.
  """
  config = programs.config
  state = programs.create_state()
  batch = _first_batch(programs, source)

  def run(name: str) -> Any:
    nonlocal state
    state, metrics = programs[name](state, *batch)
    return metrics

  timings = timing.interleaved({name: functools.partial(run, name) for name in programs.steps}, rounds, least_seconds)
  share, several = programs.r1_share, config.train.steps_per_call
  mixed = sum(part * operations.of_step(config, r1) for r1, part in ((False, 1 - share), (True, share)) if part)
  found = {}
  for name in programs.steps:
    times = timings[name].divided(several)
    per_image = mixed if name == 'call' else operations.of_step(config, name == 'r1')
    found[name] = {**times.summary(), **speed(config, times.median, per_image),
                   'operations_per_image_xla': _xla_operations(programs, name)}
  if len(found) == 2:
    seconds = share * found['r1']['seconds'] + (1 - share) * found['plain']['seconds']
    found['amortised'] = {'seconds': seconds, **speed(config, seconds, mixed)}
  return found


def speed(config: Config, seconds: float, per_image: float) -> dict[str, Any]:
  """What a step of so many seconds and operations per image is worth; utilisation is None where no peak is known."""
  devices = jax.device_count()
  per_second = per_image * config.data.batch_size / seconds / devices
  return {
      'images_per_second': config.data.batch_size / seconds, 'operations_per_image': per_image,
      'operations_per_second_per_device': per_second, 'utilisation': _utilisation(config, per_second)}


def _utilisation(config: Config, per_second: float) -> float | None:
  peak = hardware.peak_operations(jax.devices()[0].device_kind, config.parallel.dtype)
  return per_second / peak if peak else None


def _xla_operations(programs: Programs, name: str) -> float | None:
  analysis = programs[name].cost_analysis() or {}
  # Of one device's share; the passes of a loop after the first are not in it.
  flops = analysis.get('flops')
  return flops * jax.device_count() / programs.config.data.batch_size if flops else None


def measure_waiting(programs: Programs, source: sources.Source, num_steps: int) -> dict[str, Any]:
  """The training loop's speed with its data: read, flipped, converted and copied to the devices as a run does it.

  Returns:
    `images_per_second`, and `data_wait`, the fraction of the time in which the loop waited for a batch.
  """
  config = programs.config
  state = programs.create_state()
  waited, several = 0.0, config.train.steps_per_call
  num_steps = -(-num_steps // several) * several
  with contextlib.closing(_batches(programs, source, num_steps + several)) as batches:
    for step in range(0, num_steps + several, several):
      before = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - before
      state, metrics = programs[programs.of_step(step)](state, *_inputs(programs, batch))
      if step == 0:  # by now the pipeline runs
        jax.block_until_ready(metrics)
        waited, begun = 0.0, time.perf_counter()
    jax.block_until_ready(metrics)
  seconds = time.perf_counter() - begun
  return {'source': source.name, 'steps': num_steps, 'images_per_second': num_steps * config.data.batch_size / seconds,
          'data_wait': waited / seconds}


def measure_sampling(
    programs: Programs, batch_sizes: tuple[int, ...], rounds: int, least_seconds: float
) -> dict[str, dict[str, Any]]:
  """Images per second and latency of the whole sampler, noise included, on one device; one entry a batch size."""
  config = programs.config
  here = jax.local_devices()[0]
  ema_params = jax.device_put(jax.jit(lambda: train_state.create(config).ema_params)(), here)
  runs: dict[str, Callable[[], Any]] = {
      f'sample_{size}': functools.partial(programs[f'sample_{size}'], ema_params, 0) for size in batch_sizes}
  found = {}
  for size, (name, times) in zip(batch_sizes, timing.interleaved(runs, rounds, least_seconds).items(), strict=True):
    per_second = operations.of_sample(config) * size / times.median
    found[name] = {
        'batch_size': size, **times.summary(), 'images_per_second': size / times.median,
        'operations_per_second_per_device': per_second, 'utilisation': _utilisation(config, per_second)}
  return found


def measure_memory(programs: Programs) -> dict[str, Any]:
  """MiB on each device: of each step by the compiler's account, and the most in use so far where the device counts."""
  found: dict[str, Any] = {}
  for name in programs.steps:
    total, temporary = compilation.memory_bytes(programs[name])
    found[name] = {'step_mib': total / 2**20, 'temporary_mib': temporary / 2**20}
  measured = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  found['device_peak_mib'] = measured / 2**20 if measured else None
  return found


def take_profile(programs: Programs, source: sources.Source, folder: str, num_steps: int = 3) -> None:
  """Leaves a trace of a few steps of each kind in `folder`, for TensorBoard's profiler."""
  state = programs.create_state()
  batch = _first_batch(programs, source)
  for traced in (False, True):
    with jax.profiler.trace(folder) if traced else contextlib.nullcontext():
      for name in programs.steps:
        for step in range(num_steps if traced else 1):
          with jax.profiler.StepTraceAnnotation(name, step_num=step):
            state, metrics = programs[name](state, *batch)
            jax.block_until_ready(metrics)


def describe_device() -> dict[str, Any]:
  """Platform, kind and number of the devices, and their published peaks."""
  kind = jax.devices()[0].device_kind
  peak = hardware.peak(kind)
  return {
      'platform': jax.devices()[0].platform, 'kind': kind, 'devices': jax.device_count(),
      'peak': {'bfloat16': peak.bfloat16, 'float32': peak.float32, 'float32_unit': peak.unit, 'source': peak.source}
      if peak else None}


def _batches(programs: Programs, source: sources.Source, num_steps: int) -> Iterator[dict[str, jax.Array]]:
  config = programs.config
  on_host = pipeline.batches(
      source, config.data, config.seed, 0, num_steps, jax.process_index(), jax.process_count())
  several = config.train.steps_per_call
  if several > 1:
    on_host = pipeline.stacked(on_host, several)
  return pipeline.device_batches(on_host, sharding.by_rows(programs.mesh, stacked=several > 1))


def _first_batch(programs: Programs, source: sources.Source) -> list[jax.Array]:
  with contextlib.closing(_batches(programs, source, programs.config.train.steps_per_call)) as batches:
    return _inputs(programs, next(batches))


def _inputs(programs: Programs, batch: dict[str, jax.Array]) -> list[jax.Array]:
  """What the step takes of a batch."""
  return [batch[name] for name in train_step.inputs(programs.config, programs.mesh)]
