"""The resources of a training run: checked before it starts, opened, and closed at its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.config import Config, UserError
from ddgan_jax.data import sources
from ddgan_jax.models import labels
from ddgan_jax.parallel import consensus, sharding
from ddgan_jax.reporting import tensorboard
from ddgan_jax.reporting.progress import Progress
from ddgan_jax.runs import ema_snapshots, init_from
from ddgan_jax.runs import workdir as workdir_lib
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.train_state import TrainState
from ddgan_jax.training.programs import StepPrograms
from ddgan_jax.training.rollback import SkippedBatches

# Fields that may differ between processes: paths on each machine.
_PER_PROCESS_FIELDS = ('data.path', 'data.data_dir', 'data.cache_dir', 'data.num_workers')


class Session:
  """A training run's workdir, data, progress line, events, checkpoints and signals.

  `Session(...)` only checks. `with session:` locks the workdir and loads the data, and at its end closes everything
  that was opened, in reverse order. With several processes, all of them call every method.

  Attributes:
    config: the checked config.
    workdir: the run's folder, created if needed; the same for all processes.
    started: `time.perf_counter()` when the session was created.
    is_main: whether this is process 0, which writes.
    mesh: the mesh of all devices.
    abstract_state: shapes, dtypes and shardings of the state.
    checkpoints: the checkpoints of the workdir.
    last_step: tracks whether results of the last step are missing.
    progress: the progress line.
    source: the data; set by `with session:`.
    skipped: the skipped batches; set by `restore`.
    stop: the signal handler; set by `listen_for_signals`.
    writer, profile: the events, for TensorBoard and other writers, and the profile; set by `start_reporting`.

  Raises:
    UserError: config, workdir or data cannot be used or differ between processes, or the run started with other data
      and `allow_other_data` is False.
  """

  def __init__(
      self, config: Config, workdir: str, allow_other_data: bool = True,
      writers: Sequence[Callable[[str], Any]] = ()):
    self.started = time.perf_counter()
    self.config = config
    self.workdir = workdir
    self._writers = writers
    self.is_main = jax.process_index() == 0
    consensus.check_same('the config', _digest(config))
    config_lib.check_devices(config, jax.device_count())
    self.checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    self.mesh = sharding.make_mesh(fsdp=config.parallel.fsdp)
    self.abstract_state = train_state.abstract_state(config, sharding.state_sharding(self.mesh))
    workdir_lib.check_workdir(workdir, config, self.checkpoints)
    if consensus.broadcast_from_main(self.checkpoints.latest_step() is None):
      consensus.run_on_all(lambda: init_from.check(self.config), 'init_from')
    self.progress = Progress(config.train.num_steps, config.data.batch_size, quiet=not self.is_main)
    self.last_step = workdir_lib.LastStep(workdir, config, self.checkpoints)
    self.source: sources.Source | None = None
    self._must_check_data = consensus.broadcast_from_main(
        not allow_other_data and self.checkpoints.latest_step() is not None)
    if self._must_check_data and consensus.broadcast_from_main(workdir_lib.data_path_changed(workdir, config)):
      self._load_data()  # needed even if the run has finished, which may be with other data

  def is_finished(self) -> bool:
    """Whether the run and its results are complete; if so, prints that."""
    finished = self._finished_step()
    if finished is None or any(self.last_step.missing()):
      return False
    self.note(f'{self.workdir} has finished its {finished:,} steps{self._last_grid(finished)}. '
              'To train longer, set --config.train.num_steps; to start a new run, use another --workdir.')
    return True

  def __enter__(self) -> Session:
    with contextlib.ExitStack() as exits:
      consensus.run_on_main(lambda: self._lock_workdir(exits))
      workdir_lib.check_shared(self.workdir)
      exits.callback(self.checkpoints.close)
      if self.source is None:
        self._load_data()
      g_size, d_size = (
          train_state.count_parameters(params)
          for params in (self.abstract_state.g_params, self.abstract_state.d_params))
      self.note(
          f'{self.config.data.name}: {len(self.source):,} {_noun(self.config)}, on {jax.device_count()} '
          f'{jax.devices()[0].platform} device(s). G has {g_size:,} parameters'
          + (f', D {d_size:,}.' if d_size else '; no D.'))
      self._exits = exits.pop_all()
    return self

  def __exit__(self, *exception: Any) -> bool | None:
    return self._exits.__exit__(*exception)

  def note(self, text: str) -> None:
    """Prints a sentence on process 0."""
    self.progress.note(text)

  def restore(self) -> TrainState | None:
    """Restores the newest good state (None in a new run), and writes the run's description to the workdir.

    Raises UserError if the checkpoint cannot be used.
    """
    state = self.checkpoints.restore_newest(self.abstract_state, self.note)
    several = self.config.train.steps_per_call
    if state is not None and int(state.step) % several:
      raise UserError(f'train.steps_per_call is {several}; use 1, or a divisor of {int(state.step):,}, the step from '
                      'which the run resumes')
    ema_snapshots.resume(self.workdir, state)
    self.skipped = SkippedBatches(self.workdir, self.note)
    if self.is_main:
      workdir_lib.write_description(self.workdir, self.config, self.abstract_state)
      workdir_lib.describe_data(self.workdir, self.config, self.source, state is not None, self.note)
    return state

  def create_state(self, programs: StepPrograms) -> TrainState:
    """Creates the state at step 0, with the networks of `train.init_from` if it is set."""
    state = programs.create_state()
    if self.config.train.init_from:
      state, sentence = init_from.initialize(state, self.config, self.abstract_state, self.note)
      self.note(sentence)
    return state

  def listen_for_signals(self) -> None:
    """From now on, a signal is a request to save and stop."""
    self.stop = self._exits.enter_context(consensus.Stop())

  def start_reporting(self, first_step: int) -> None:
    """Opens the event file and the other writers, and schedules the profile of a run that trains from `first_step` on.

    Call it after the first program is compiled: the import of TensorFlow would slow down the compilation.
    """
    train, several = self.config.train, self.config.train.steps_per_call
    self.writer = tensorboard.EventWriter(self.workdir, self.is_main, self._writers)
    self._exits.callback(self.writer.close, self.note)
    self.writer.hparams(config_lib.flatten(self.config))
    warmup = max(10, self.config.optim.lazy_reg + 1)  # by then both programs have run
    self.profile = tensorboard.Profile(
        self.workdir, first_step + _round_up(warmup, several), _round_up(train.profile_steps, several),
        self.is_main)
    self._exits.callback(self.profile.close)

  def finish(self, step: int) -> bool:
    """Reports how the run ended at `step`, which is saved; returns whether it has finished."""
    self.writer.flush(self.note)
    if step < self.config.train.num_steps:
      self.note(f'{self.stop.signal}: saved step {step:,} in {self.workdir}; the same command resumes from there.')
      return False
    if any(missing := self.last_step.missing()):
      self.note(f'{self.stop.signal}: saved the last step, {step:,}, in {self.workdir}; the same command adds '
                f'{workdir_lib.missing_names(missing)}.')
      return False
    self.last_step.end()
    self.note(f'Finished {step:,} steps in {self.workdir}{self._last_grid(step)}.')
    return True

  def _lock_workdir(self, exits: contextlib.ExitStack) -> None:
    workdir_lib.check_space(self.workdir, self.config, self.checkpoints, self.abstract_state)
    exits.enter_context(workdir_lib.locked(self.workdir))

  def _load_data(self) -> None:
    """Loads and compares the data; an error on one process is raised on all."""
    def load() -> sources.Source:
      source = sources.load_source(self.config.data, self.note)
      labels.check_data(self.config, source)
      return source

    source = consensus.run_on_all(load, 'data')
    consensus.check_same('the data', f'{len(source):,} {_noun(self.config)} with checksum {source.checksum}')
    if self._must_check_data:
      consensus.run_on_main(lambda: workdir_lib.check_data(self.workdir, self.config, source))
    self.source = source

  def _finished_step(self) -> int | None:
    """The step of the last checkpoint if it is the run's last step and good, otherwise None."""
    num_steps, latest = self.config.train.num_steps, self.checkpoints.latest_step()
    if consensus.broadcast_from_main(-1 if latest is None else latest) < num_steps:
      return None
    good = self.checkpoints.restore_newest_ema(self.abstract_state.ema_params, self.note)
    return None if good is None or good[1] < num_steps else good[1]

  def _last_grid(self, step: int) -> str:
    path = workdir_lib.grid_path(self.workdir, step)
    return f'; its last sample grid is {path}' if epath.Path(path).exists() else ''


def _digest(config: Config) -> str:
  """A digest of the config fields that all processes share."""
  shared = {name: value for name, value in config_lib.flatten(config).items() if name not in _PER_PROCESS_FIELDS}
  return 'digest ' + hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def _noun(config: Config) -> str:
  return 'points' if config.data.is_points else 'images'


def _round_up(num_steps: int, several: int) -> int:
  """`num_steps`, rounded up to a multiple of `several`."""
  return -(-num_steps // several) * several
