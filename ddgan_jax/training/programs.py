"""The compiled programs of a run: a training step without R1, one with R1, or `train.steps_per_call` steps."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax

from ddgan_jax import objectives, train_state, train_step
from ddgan_jax.config import Config
from ddgan_jax.data import pipeline
from ddgan_jax.data.sources import Source
from ddgan_jax.objectives.base import Metrics
from ddgan_jax.parallel import compilation, consensus, sharding
from ddgan_jax.train_state import TrainState

PLAIN, R1, CALL = 'plain', 'r1', 'call'
_POLL_SECONDS = 0.2  # between checks for a signal
_barrier_ids = itertools.count()  # makes the names of barriers unique


@dataclasses.dataclass(eq=False)
class Program:
  """A compiled program; its first call waits until all processes have compiled theirs.

  Attributes:
    compiled: the compiled function.
    trace_seconds: time to trace.
    compile_seconds: time to compile, or to load from the persistent cache.
  """

  compiled: Any
  trace_seconds: float = 0.0
  compile_seconds: float = 0.0
  _passed_barrier: bool = False

  def __call__(self, *arguments: Any) -> Any:
    if not self._passed_barrier:
      consensus.barrier(f'program {next(_barrier_ids)}')
      self._passed_barrier = True
    return self.compiled(*arguments)


class StepPrograms:
  """Traces the training programs of a run, compiles them in the background, and returns the program for a step.

  The programs are `plain` and `r1`, one step without and with the R1 penalty (a run may need only one of them), or
  `call`, `train.steps_per_call` steps that add R1 when it is due. Each is called as
  `program(state, *batch) -> (state, metrics)`, donates the state, and takes a batch from `batches`.

  Attributes:
    config, mesh: the run and its devices.
    steps_per_call: number of steps per program.
    penalty: the objective's gradient penalty.
    abstract_state, abstract_batch: shapes, dtypes and shardings of the state and of a batch (by name).
  """

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    self.config = config
    self.mesh = mesh
    self.steps_per_call = config.train.steps_per_call
    self.abstract_state = train_state.abstract_state(config, sharding.state_sharding(mesh))
    self.penalty = objectives.make(config).penalty
    self.abstract_batch = train_step.abstract_batch(config, mesh, stacked=self.steps_per_call > 1)
    self._futures: dict[str, concurrent.futures.Future[Program]] = {}

  def name(self, step: int) -> str:
    """The name of the program for state.step == `step`."""
    if self.steps_per_call > 1:
      return CALL
    return R1 if self.penalty.is_due(step) else PLAIN

  def names(self, step: int = 0) -> tuple[str, ...]:
    """The names of the programs for a run from `step` on, that of `step` first."""
    if self.steps_per_call > 1:
      return (CALL,)
    return tuple(R1 if r1 else PLAIN for r1 in self.penalty.variants(step))

  def lower(self, name: str) -> jax.stages.Lowered:
    """Traces a program."""
    if name == CALL:
      step_fn = train_step.make_steps_fn(self.config, self.mesh)
    else:
      step_fn = train_step.make_step_fn(self.config, self.mesh, name == R1)
    return step_fn.lower(self.abstract_state, *self.abstract_batch.values())

  def start(self, names: Iterable[str]) -> None:
    """Traces programs one after the other and starts compiling each in the background as soon as it is traced.

    Tracing holds the GIL; compilation does not.
    """
    for name in names:
      if name not in self._futures:
        start = time.perf_counter()
        lowered = self.lower(name)
        self._futures[name] = compilation.run_in_background(_compile, lowered, time.perf_counter() - start)

  def wait(self, step: int, stop: consensus.Stop) -> Program | None:
    """Waits for the program of a step, after `start`; returns None if a signal came first."""
    return wait_for(self._futures[self.name(step)], stop)

  def create_state(self) -> TrainState:
    """Creates the state at step 0 on the mesh."""
    shardings = sharding.tree_shardings(self.abstract_state)
    return jax.jit(lambda: train_state.create(self.config, self.mesh), out_shardings=shardings)()

  def batches(self, source: Source, ranges: Iterable[tuple[int, int]]) -> Iterator[list[jax.Array]]:
    """Yields the global batches of `ranges`, each [first, last), on the devices, as arguments of the programs.

    `steps_per_call` must divide their number. Close the iterator after use.
    """
    return self.on_devices(self._host_batches(source, ranges))

  def on_devices(self, on_host: Generator[dict[str, Any]]) -> Iterator[list[jax.Array]]:
    """Yields this process's rows of global batches, as `pipeline.batches` does, as arguments of the programs."""
    stacked = self.steps_per_call > 1
    if stacked:
      on_host = pipeline.stack_batches(on_host, self.steps_per_call)
    rows = sharding.batch_sharding(self.mesh, stacked)
    with contextlib.closing(pipeline.device_batches(on_host, rows)) as on_devices:
      for batch in on_devices:
        yield [batch[name] for name in self.abstract_batch]

  def unstack_metrics(self, metrics: Metrics, step: int) -> list[tuple[int, Metrics]]:
    """Splits the metrics of a call that ended at `step` into one (step, metrics) per step."""
    if self.steps_per_call == 1:
      return [(step, metrics)]
    return train_step.unstack_metrics(jax.device_get(metrics), step, self.penalty)

  def _host_batches(self, source: Source, ranges: Iterable[tuple[int, int]]) -> Generator[dict[str, Any]]:
    for first, last in ranges:
      yield from pipeline.batches(
          source, self.config.data, self.config.seed, first, last, jax.process_index(), jax.process_count())


def wait_for(future: concurrent.futures.Future, stop: consensus.Stop) -> Any:
  """Waits for the future's result; returns None if a signal came first."""
  while not stop.signal:
    if future.done():
      return future.result()
    concurrent.futures.wait([future], timeout=_POLL_SECONDS)
  return None


def _compile(lowered: jax.stages.Lowered, trace_seconds: float) -> Program:
  start = time.perf_counter()
  compiled = lowered.compile()
  return Program(compiled, trace_seconds, time.perf_counter() - start)
