"""The compiled programs of a run: a step without R1, one with it, or `train.steps_per_call` steps in one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
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
_POLL_SECONDS = 0.2  # between two looks for a signal
_barrier_ids = itertools.count()  # each is a barrier with a name of its own


@dataclasses.dataclass(eq=False)
class Program:
  """A compiled program; its first call waits until all processes have theirs.

  Attributes:
    compiled: what is called.
    trace_seconds: how long tracing took.
    compile_seconds: how long compiling took; little when it came from the persistent cache.
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
  """Traces the training programs of a run, compiles them in the background, and hands out the one for a step.

  They are `plain` and `r1`, a step without and with the R1 penalty, of which a run may need only one; or `call`, of
  `train.steps_per_call` steps, which decides by itself which of them have R1. Each is called as
  `program(state, *batch) -> (state, metrics)`, donates the state, and takes its batch as `batches` yields it.

  Attributes:
    config, mesh: the run and its devices.
    steps_per_call: how many steps a program takes.
    penalty: the objective's, and when it is due.
    abstract_state, abstract_batch: shapes, dtypes and shardings of the state, and of a batch, by name.
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
    """The program that takes the step from state.step == `step`, alone or as the first of a call."""
    if self.steps_per_call > 1:
      return CALL
    return R1 if self.penalty.is_due(step) else PLAIN

  def names(self, step: int = 0) -> tuple[str, ...]:
    """The programs that a run needs from `step` on, that of `step` itself first."""
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
    """Begins to compile programs; returns when all are traced.

    They are traced one after the other, because tracing holds the interpreter, and compiled side by side, each as soon
    as it is traced.
    """
    for name in names:
      if name not in self._futures:
        begun = time.perf_counter()
        lowered = self.lower(name)
        self._futures[name] = compilation.run_in_background(_compile, lowered, time.perf_counter() - begun)

  def wait(self, step: int, stop: consensus.Stop) -> Program | None:
    """The program for a step, which was started, once it is compiled; None if a signal came first."""
    return wait_for(self._futures[self.name(step)], stop)

  def create_state(self) -> TrainState:
    """The state at step 0, on the devices of the mesh."""
    shardings = sharding.tree_shardings(self.abstract_state)
    return jax.jit(lambda: train_state.create(self.config, self.mesh), out_shardings=shardings)()

  def batches(self, source: Source, ranges: Iterable[tuple[int, int]]) -> Iterator[list[jax.Array]]:
    """The global batches of `ranges`, each [first, last), on the devices, as the programs take them; to be closed.

    `steps_per_call` divides how many there are.
    """
    on_host = self._host_batches(source, ranges)
    stacked = self.steps_per_call > 1
    if stacked:
      on_host = pipeline.stack_batches(on_host, self.steps_per_call)
    rows = sharding.batch_sharding(self.mesh, stacked)
    with contextlib.closing(pipeline.device_batches(on_host, rows)) as on_devices:
      for batch in on_devices:
        yield [batch[name] for name in self.abstract_batch]

  def unstack_metrics(self, metrics: Metrics, step: int) -> list[tuple[int, Metrics]]:
    """The metrics of a call that ended with `step` steps done, as (step, its metrics) of each."""
    if self.steps_per_call == 1:
      return [(step, metrics)]
    return train_step.unstack_metrics(jax.device_get(metrics), step, self.penalty)

  def _host_batches(self, source: Source, ranges: Iterable[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for first, last in ranges:
      yield from pipeline.batches(
          source, self.config.data, self.config.seed, first, last, jax.process_index(), jax.process_count())


def wait_for(future: concurrent.futures.Future, stop: consensus.Stop) -> Any:
  """The future's result, or None once a signal has come."""
  while not stop.signal:
    if future.done():
      return future.result()
    concurrent.futures.wait([future], timeout=_POLL_SECONDS)
  return None


def _compile(lowered: jax.stages.Lowered, trace_seconds: float) -> Program:
  begun = time.perf_counter()
  compiled = lowered.compile()
  return Program(compiled, trace_seconds, time.perf_counter() - begun)
