"""The training loop: data → training step → progress, TensorBoard, sample grids, checkpoints. No arithmetic.

The same call starts a run, resumes it, or reports that it has finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ddgan_jax.config import Config, UserError
from ddgan_jax.runs import ema_snapshots
from ddgan_jax.runs.checkpoints import NotFiniteError
from ddgan_jax.train_state import TrainState
from ddgan_jax.training.cadence import Cadence
from ddgan_jax.training.meter import Meter
from ddgan_jax.training.programs import StepPrograms
from ddgan_jax.training.results import Results
from ddgan_jax.training.rollback import ADVICE, Diverged
from ddgan_jax.training.session import Session


def train_and_evaluate(
    config: Config, workdir: str, allow_other_data: bool = True, writers: Sequence[Callable[[str], Any]] = ()) -> bool:
  """Trains until `train.num_steps`, a signal, or an error; resumes from the newest good checkpoint of `workdir`.

  Process 0 writes config.json, parameters.txt, data.png and data.json (the training data), checkpoints/, TensorBoard
  events and samples/step_XXXXXXXX.png to the workdir.

  Args:
    config: the checked config.
    workdir: the run's folder, created if needed; the same for all processes.
    allow_other_data: whether the run may resume with other data than it started with.
    writers: functions of the workdir that open further loggers with the interface of CLU's writers, such as a class for
      W&B; see `tensorboard.EventWriter`. Process 0 opens them when training begins and closes them at its end, also
      after an error.

  Returns:
    Whether the run has finished; False after a signal.

  Raises:
    UserError: config, data, workdir or checkpoint cannot be used, or the losses are not finite.
  """
  session = Session(config, workdir, allow_other_data, writers)
  if session.is_finished():
    return True
  with session:
    results = Results(session)
    programs = StepPrograms(config, session.mesh)
    state = session.restore()
    step = 0 if state is None else int(state.step)
    is_trained = step >= config.train.num_steps  # only the last step's results may be missing
    session.listen_for_signals()
    if not is_trained:
      session.note('Compiling the training step: seconds if cached, otherwise a minute or more.')
      programs.start(programs.names(step))
    if state is None:
      state = session.create_state(programs)
    if not is_trained and programs.wait(step, session.stop) is None:
      session.note(f'{session.stop.signal} before the first step: there is nothing to save.')
      return False
    session.start_reporting(step)
    results.start()
    if is_trained:
      results.add_missing(state, step)
    meter = Meter(config, programs, session.progress, session.writer, session.started)
    while not is_trained:
      try:
        step = train(session, programs, results, meter, state, step)
        break
      except Diverged as error:
        state, step = roll_back(session, programs, meter, error)
    return session.finish(step)


def train(
    session: Session, programs: StepPrograms, results: Results, meter: Meter, state: TrainState, step: int) -> int:
  """Trains from `state` at `step` until the last step or a signal; saves and returns the step reached.

  Raises Diverged if losses or parameters are not finite; the newest checkpoint is then still good.
  """
  num_steps, stop = session.config.train.num_steps, session.stop
  cadence = Cadence(session.config.train)
  with contextlib.closing(programs.batches(session.source, session.skipped.ranges(step, num_steps))) as batches:
    try:
      stopping = False
      while step < num_steps and not stopping:
        with session.progress.waiting():
          batch = next(batches)
        program = programs.wait(step, stop)
        if program is None:  # a signal came during compilation
          meter.drain()
          save(session, state, step)
          break
        if session.profile.is_due(step):
          meter.drain()
          session.profile.switch(session.note)
        state, metrics = program(state, *batch)
        step += programs.steps_per_call
        meter.add(step, metrics, program)
        due = cadence.after(step)
        stopping = stop.should_stop()  # called once: a later signal counts for the next step
        if stopping or due.pause:
          meter.drain()  # raises Diverged before a state that is not finite is sampled or saved
          # Save first, so that an error in sampling or evaluation loses no steps.
          if due.last:
            session.last_step.begin()
          if stopping or due.save or due.evaluate:
            save(session, state, step)
          if due.sample or due.evaluate:
            session.checkpoints.wait()
            results.write(state, step, due.sample, due.evaluate and not stopping)
          stopping = stopping or due.evaluate and stop.signal is not None
          session.progress.start(step)
    except Diverged:
      raise
    except Exception:
      save_after_error(session, meter, state)
      raise
  session.checkpoints.wait()
  return step


def save(session: Session, state: TrainState, step: int) -> None:
  """Saves the state at `step`. Raises Diverged if it is not finite."""
  try:
    session.checkpoints.save(state)
  except NotFiniteError as error:
    raise Diverged(error.arrays, step) from error
  ema_snapshots.write(session.workdir, state)


def save_after_error(session: Session, meter: Meter, state: TrainState) -> None:
  """Saves the completed steps after another error, if possible."""
  if jax.process_count() == 1:  # a save needs all processes
    with contextlib.suppress(Exception):
      meter.drain()
      session.checkpoints.save(state)
      session.checkpoints.wait()
      ema_snapshots.write(session.workdir, state)


def roll_back(session: Session, programs: StepPrograms, meter: Meter, error: Diverged) -> tuple[TrainState, int]:
  """Restores the last good state and skips the batches between it and `error`; returns the state and its step.

  Raises UserError if `train.on_nonfinite` is `stop`, or after too many rollbacks to this step.
  """
  checkpoints = session.checkpoints
  if session.config.train.on_nonfinite == 'stop':
    checkpoints.wait()
    last = checkpoints.latest_step()
    kept = 'there is no checkpoint yet' if last is None else f'the last good checkpoint is step {last:,}'
    raise UserError(f'{error}; {kept}; {ADVICE}, or set train.on_nonfinite=rollback') from None
  state = checkpoints.restore_newest(session.abstract_state, session.note)
  step = 0 if state is None else int(state.step)
  ema_snapshots.resume(session.workdir, state)
  session.note(session.skipped.roll_back(step, error, write=session.is_main))
  meter.reset()
  if session.progress.started:
    session.progress.start(step)
  return session.create_state(programs) if state is None else state, step
