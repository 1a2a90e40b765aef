"""The folder of a run: checks, locking, and the files that describe the run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
from clu import parameter_overview
from etils import epath

from ddgan_jax import config as config_lib
from ddgan_jax.config import Config, UserError
from ddgan_jax.config.resuming import CHANGEABLE_FIELDS
from ddgan_jax.data import pipeline
from ddgan_jax.data.sources import Source
from ddgan_jax.parallel import consensus
from ddgan_jax.reporting import grids
from ddgan_jax.runs.checkpoints import Checkpoints, is_disk_full
from ddgan_jax.train_state import ProfiledState, TrainState
from ddgan_jax.utils import files


class WorkdirError(UserError):
  """The workdir cannot be used for this run; nothing in it was changed."""


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
  """Locks an existing workdir for this process; the lock ends with the process.

  Raises WorkdirError if another process has the lock. A bucket has no locks, so two runs in one are not detected.
  """
  if '://' in str(workdir):
    yield
    return
  path = epath.Path(workdir) / '.lock'
  with path.open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise WorkdirError(f'{workdir}: another run is using it ({path.read_text().strip() or "it has just started"}); '
                         'wait until it ends, or use another --workdir') from None
    except OSError:
      pass  # a network file system without locks
    else:
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
      file.flush()
    yield


def grid_path(workdir: str, step: int) -> str:
  """The path of the sample grid of a step."""
  return str(epath.Path(workdir) / 'samples' / f'step_{step:08d}.png')


def check_workdir(workdir: str, config: Config, checkpoints: Checkpoints) -> None:
  """Raises UserError for a workdir of another program or with another config; changes nothing."""
  inside, outside = (os.path.realpath(os.path.expanduser(path)) + os.sep for path in (workdir, config.data.path))
  if config.data.name == 'folder' and '://' not in str(workdir) and inside.startswith(outside):
    raise WorkdirError(
        f'{workdir}: is inside data.path, so its pictures would become data; use another --workdir')
  stored = epath.Path(workdir) / 'config.json'
  if not stored.exists():
    if checkpoints.folder.exists() and any(checkpoints.folder.iterdir()):
      raise WorkdirError(
          f'{checkpoints.folder}: has files, but {workdir} has no config.json, so they are not from a ddgan_jax run; '
          'nothing was changed; use another --workdir')
    return
  if checkpoints.latest_step() is None:
    return
  before = config_lib.flatten(config_lib.from_json(stored.read_text(), str(stored)))
  now = config_lib.flatten(config)
  changed = [
      f'{field} was {before[field]}, is {now[field]}' for field in now
      if before[field] != now[field] and not field.startswith(CHANGEABLE_FIELDS)]
  if changed:
    raise WorkdirError(f'{workdir}: belongs to a run with another config ({"; ".join(changed)}); use another '
                       f'--workdir, set the fields back, or resume the run unchanged with --workdir={workdir} alone')
  if now['train.init_from'] != before['train.init_from']:
    raise WorkdirError(f'train.init_from is {now["train.init_from"]!r}, but {workdir} has trained already; use another '
                       '--workdir')
  if before['train.num_steps'] != now['train.num_steps'] and jax.process_index() == 0:
    print(f'train.num_steps was {before["train.num_steps"]:,}, is {now["train.num_steps"]:,}: from now on the '
          'schedules follow the new length.', flush=True)


def check_space(workdir: str, config: Config, checkpoints: Checkpoints, abstract_state: TrainState) -> None:
  """Creates the workdir; raises WorkdirError if it is read-only or has no space for the checkpoints."""
  folder = epath.Path(workdir)
  probe = folder / f'.probe.{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    try:
      probe.write_text('x' * 4096)
    finally:
      probe.unlink(missing_ok=True)
  except Exception as error:  # each kind of bucket has its own errors
    if '://' not in str(workdir) and not isinstance(error, OSError):
      raise
    if is_disk_full(error):
      raise WorkdirError(f'{workdir}: no space left on device; free some space, or use another --workdir') from error
    reason = getattr(error, 'strerror', None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise WorkdirError(f'{workdir}: cannot be written to ({reason}); use another --workdir') from error
  if '://' in str(workdir):
    return  # a bucket has no size limit
  free = shutil.disk_usage(workdir).free
  size = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(abstract_state))
  wanted = size * max(1, config.train.keep_checkpoints + 1 - len(checkpoints.steps()))
  needs = f'checkpoints of {size / 2**20:,.1f} MiB each'
  if isinstance(abstract_state, ProfiledState):
    saves = -(-(config.train.num_steps - (checkpoints.latest_step() or 0)) // config.train.checkpoint_every)
    wanted += max(0, saves) * sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(abstract_state.ema_profiles))
    needs += f' and the averages of optim.ema_profiles at {saves:,} steps'
  if free < wanted:
    raise WorkdirError(
        f'{workdir}: has {free / 2**20:,.0f} MiB of free space, but {needs} need {wanted / 2**20:,.0f} MiB; free some '
        'space, or use another --workdir')


def check_shared(workdir: str) -> None:
  """Raises WorkdirError on every process if not all share the workdir: the first checkpoint would hang."""
  if jax.process_count() == 1:
    return
  # A new name each time, because network file systems cache that a file does not exist.
  seen = epath.Path(workdir) / f'.seen.{consensus.broadcast_from_main(int.from_bytes(os.urandom(3)))}'
  consensus.run_on_main(lambda: seen.write_text(''))
  blind = consensus.shared_text('' if seen.exists() else f'process {jax.process_index()}')
  consensus.run_on_main(lambda: seen.unlink())
  if blind:
    raise WorkdirError(f'{workdir}: {blind} does not see the files that process 0 writes there; use a --workdir that '
                       'all processes share, or a bucket')


def write_description(workdir: str, config: Config, state: TrainState) -> None:
  """Writes config.json, and parameters.txt with the name, shape and size of every parameter of G and D."""
  overview = '\n\n'.join(
      f'{name}\n{parameter_overview.get_parameter_overview(params, include_stats=False)}'
      for name, params in (('Generator', state.g_params), ('Discriminator', state.d_params)) if params)
  for name, text in (('config.json', config_lib.to_json(config)), ('parameters.txt', overview + '\n')):
    path = epath.Path(workdir) / name
    if not path.exists() or path.read_text() != text:
      with files.atomic_write(path) as file:
        file.write(text)


class LastStep:
  """Tracks whether the sample grid and the evaluation of a run's last step are missing.

  A marker file exists from just before the last save until both are done. It distinguishes an interrupted run from one
  whose pictures were moved away.
  """

  def __init__(self, workdir: str, config: Config, checkpoints: Checkpoints):
    self._file = epath.Path(workdir) / '.last_step'
    self._grid = epath.Path(grid_path(workdir, config.train.num_steps))
    self._config = config.train
    self._checkpoints = checkpoints

  def begin(self) -> None:
    """Writes the marker, on process 0."""
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # the save that follows matters more
        self._file.write_text(f'{self._config.num_steps}\n')

  def end(self) -> None:
    """Removes the marker, on process 0."""
    if jax.process_index() == 0:
      self._file.unlink(missing_ok=True)

  def missing(self) -> tuple[bool, bool]:
    """(Whether the sample grid is missing, whether the evaluation is missing), the same on all processes."""
    begun = self._file.exists() and self._file.read_text().strip() == str(self._config.num_steps)
    grid = begun and not self._grid.exists()
    evaluation = begun and self._config.eval_every > 0 and not self._checkpoints.metrics(self._config.num_steps)
    return bool(consensus.broadcast_from_main(grid)), bool(consensus.broadcast_from_main(evaluation))


def missing_names(missing: tuple[bool, bool]) -> str:
  """`LastStep.missing()` in words."""
  return ' and '.join(name for name, lacks in zip(('its sample grid', 'its evaluation'), missing) if lacks)


def data_path_changed(workdir: str, config: Config) -> bool:
  """Whether the run of `workdir` last read its data from another path; the data may be the same."""
  stored = epath.Path(workdir) / 'config.json'
  if not stored.exists():
    return False
  before = config_lib.from_json(stored.read_text(), str(stored)).data
  return (before.path, before.data_dir) != (config.data.path, config.data.data_dir)


def check_data(workdir: str, config: Config, source: Source, named: str | None = None) -> None:
  """Raises WorkdirError if the run of `workdir` started with other data; changes nothing.

  `named` is the value of --workdir in the message, by default `workdir`.
  """
  before, now = _stored_data(workdir), _data_summary(source)
  if before in (None, now):
    return
  named = named or workdir
  path = f' at {config.data.path}' if config.data.path else ''
  raise WorkdirError(
      f'{workdir}: this run started with other data ({before["images"]:,} images with checksum {before["checksum"]}) '
      f'than {config.data.name}{path} ({now["images"]:,} images with checksum {now["checksum"]}); set --workdir to '
      f'another folder to start a new run, or set --workdir={named} to continue this one with the new data')


def _data_summary(source: Source) -> dict[str, Any]:
  return {'images': len(source), 'checksum': source.checksum}


def _stored_data(workdir: str) -> dict[str, Any] | None:
  """The summary of the data that the run of `workdir` started with, from data.json; None if there is none."""
  try:
    before = json.loads((epath.Path(workdir) / 'data.json').read_text())
    return {name: before[name] for name in ('images', 'checksum')}
  except (OSError, ValueError, KeyError, TypeError):
    return None


def describe_data(
    workdir: str, config: Config, source: Source, is_resumed: bool, log: Callable[[str], None]) -> None:
  """Writes data.json (a summary of the data) and data.png (its first images); reports a resumed run with other data."""
  found = _data_summary(source)
  path = epath.Path(workdir) / 'data.json'
  before = _stored_data(workdir)
  if before == found:
    return
  if before and is_resumed:
    log(f'This run started with other data: {before["images"]:,} images (checksum {before["checksum"]}), now '
        f'{found["images"]:,} ({found["checksum"]}). It continues with the new data.')
    return
  count = config.train.num_samples if config.data.is_points else 64
  seen = pipeline.preview(source, config.data, config.seed, count)
  value_range = config.data.value_range
  picture = grids.make_picture(seen, f'{count:,} points of {config.data.name}', value_range=value_range)
  grids.save_png(path.parent / 'data.png', picture)
  if value_range:
    log(f'Pictures show {grids.describe_values(config.data.num_channels, value_range)}.')
  with files.atomic_write(path) as file:
    file.write(json.dumps(found) + '\n')
