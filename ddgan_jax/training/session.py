"""Everything that a training run checks before it begins, opens, and closes at its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
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
from ddgan_jax.runs import workdir as workdir_lib
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.train_state import TrainState
from ddgan_jax.training.rollback import SkippedBatches

# Fields that may differ between the processes of a run: where each machine keeps its data.
_PER_PROCESS_FIELDS = ('data.path', 'data.data_dir', 'data.cache_dir', 'data.num_workers')


class Session:
  """A training run's workdir, data, progress line, events, checkpoints and signals.

  `Session(...)` checks and changes nothing. `with session:` locks the workdir and loads the data; whatever has been
  opened since is closed at its end, in reverse order. With several processes all call every method.

  Attributes:
    config: the run, checked.
    workdir: its folder, made if needed; the same for all processes.
    started: `time.perf_counter()` when the session was made.
    is_main: whether this is process 0, which writes.
    mesh: all devices.
    abstract_state: shapes, dtypes and shardings of the state.
    checkpoints: of the workdir.
    last_step: whether the last step's sample grid and evaluation are still missing.
    progress: the progress line.
    source: the data; from `with session:` on.
    skipped: which batches the run skips; from `restore` on.
    stop: the signals; from `listen` on.
    writer, profile: TensorBoard's events and profile; from `start_reporting` on.

  Raises:
    UserError: config, workdir or data cannot be used, or differ between processes; or the data are not those that the
      run began with, and `allow_other_data` is False; one sentence.
  """

  def __init__(self, config: Config, workdir: str, allow_other_data: bool = True):
    self.started = time.perf_counter()
    self.config = config
    self.workdir = workdir
    self.is_main = jax.process_index() == 0
    consensus.check_same('the config', _digest(config))
    config_lib.check_devices(config, jax.device_count())
    self.checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    self.mesh = sharding.make_mesh(fsdp=config.parallel.fsdp)
    self.abstract_state = train_state.abstract_state(config, sharding.state_sharding(self.mesh))
    workdir_lib.check_workdir(workdir, config, self.checkpoints)
    self.progress = Progress(config.train.num_steps, config.data.batch_size, quiet=not self.is_main)
    self.last_step = workdir_lib.LastStep(workdir, config, self.checkpoints)
    self.source: sources.Source | None = None
    self._must_check_data = consensus.broadcast_from_main(
        not allow_other_data and self.checkpoints.latest_step() is not None)
    if self._must_check_data and consensus.broadcast_from_main(workdir_lib.data_path_changed(workdir, config)):
      self._load_data()  # even a finished run may be one on other data

  def is_finished(self) -> bool:
    """Whether nothing is left to do, which is then said."""
    finished = self._finished_step()
    if finished is None or any(self.last_step.missing()):
      return False
    self.note(f'{self.workdir} has finished its {finished:,} steps{self._last_grid(finished)}. '
              'To train longer set --config.train.num_steps; to start a new run choose another --workdir.')
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
    """The newest good state, or None in a new run; then the workdir describes the run and its data.

    Raises:
      UserError: the state cannot be used.
    """
    state = self.checkpoints.restore_newest(self.abstract_state, self.note)
    several = self.config.train.steps_per_call
    if state is not None and int(state.step) % several:
      raise UserError(f'train.steps_per_call: found {several}, but the run resumes from step {int(state.step):,}, '
                      'which must be a multiple of it; use 1')
    self.skipped = SkippedBatches(self.workdir, self.note)
    if self.is_main:
      workdir_lib.write_description(self.workdir, self.config, self.abstract_state)
      workdir_lib.describe_data(self.workdir, self.config, self.source, state is not None, self.note)
    return state

  def listen_for_signals(self) -> None:
    """From now on a signal is a request to save and leave."""
    self.stop = self._exits.enter_context(consensus.Stop())

  def start_reporting(self, first_step: int) -> None:
    """Opens TensorBoard's event file and plans the profile of a run that trains from `first_step` on.

    Not earlier than the first program is compiled: TensorFlow's import would take its processor time.
    """
    train, several = self.config.train, self.config.train.steps_per_call
    self.writer = tensorboard.EventWriter(self.workdir, self.is_main)
    self._exits.callback(self.writer.close)
    self.writer.hparams(config_lib.flatten(self.config))
    warm = max(10, self.config.optim.lazy_reg + 1)  # by then both steps are compiled and have run
    self.profile = tensorboard.Profile(
        self.workdir, first_step + _round_up(warm, several), _round_up(train.profile_steps, several),
        self.is_main)
    self._exits.callback(self.profile.close)

  def finish(self, step: int) -> bool:
    """Says how the run ended after `step`, which is saved; returns whether it has finished."""
    self.writer.flush(self.note)
    if step < self.config.train.num_steps:
      self.note(f'{self.stop.signal}: saved step {step:,} in {self.workdir}; the same command resumes from there.')
      return False
    if any(missing := self.last_step.missing()):
      self.note(f'{self.stop.signal}: saved the last step, {step:,}, in {self.workdir}; the same command adds what is '
                f'missing: {workdir_lib.missing_names(missing)}.')
      return False
    self.last_step.end()
    self.note(f'Finished {step:,} steps in {self.workdir}{self._last_grid(step)}.')
    return True

  def _lock_workdir(self, exits: contextlib.ExitStack) -> None:
    workdir_lib.check_space(self.workdir, self.config, self.checkpoints, self.abstract_state)
    exits.enter_context(workdir_lib.locked(self.workdir))

  def _load_data(self) -> None:
    """Loads the data, the same on all processes; what one of them cannot do ends all."""
    source, error = None, ''
    try:
      source = sources.load_source(self.config.data, self.note)
      labels.check_data(self.config, source)
    except UserError as mistake:
      error = str(mistake)
    consensus.barrier('data')
    error = consensus.shared_text(error)
    if error:
      raise UserError(error)
    consensus.check_same('the data', f'{len(source):,} {_noun(self.config)} with checksum {source.checksum}')
    if self._must_check_data:
      consensus.run_on_main(lambda: workdir_lib.check_data(self.workdir, self.config, source))
    self.source = source

  def _finished_step(self) -> int | None:
    """The step of the last checkpoint, if the run ends there and it is good."""
    num_steps, latest = self.config.train.num_steps, self.checkpoints.latest_step()
    if consensus.broadcast_from_main(-1 if latest is None else latest) < num_steps:
      return None
    good = self.checkpoints.restore_newest_ema(self.abstract_state.ema_params, self.note)
    return None if good is None or good[1] < num_steps else good[1]

  def _last_grid(self, step: int) -> str:
    path = workdir_lib.grid_path(self.workdir, step)
    return f'; its last sample grid is {path}' if epath.Path(path).exists() else ''


def _digest(config: Config) -> str:
  """What all processes must agree on."""
  shared = {name: value for name, value in config_lib.flatten(config).items() if name not in _PER_PROCESS_FIELDS}
  return 'digest ' + hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def _noun(config: Config) -> str:
  return 'points' if config.data.is_points else 'images'


def _round_up(num_steps: int, several: int) -> int:
  """`num_steps`, rounded up to a multiple of `several`."""
  return -(-num_steps // several) * several
