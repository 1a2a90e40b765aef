"""Orbax checkpoints of a run. No other file imports Orbax.

A checkpoint is `<workdir>/checkpoints/<step>/` with the whole `TrainState` in `state`, a digest of every array in
`digests`, because Orbax does not detect bytes that changed on disk, and optionally metrics in `metrics.json`. Orbax
writes to a temporary name and renames it (in a bucket, writes a marker last), so an interrupted save is never read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ddgan_jax.config import UserError
from ddgan_jax.parallel import consensus, sharding
from ddgan_jax.train_state import TrainState
from ddgan_jax.utils import files

_FOLDER = 'checkpoints'
_METRICS = 'metrics.json'  # the first versions used metrics/metrics, written by Orbax
# Checkpoints are ranked by the first of these that was measured; lower is better.
_DISTANCES = (
    'eval/fid', 'eval/fid_clean', 'eval/fd_dinov2', 'eval/kid', 'eval/mind', 'eval/mind_dinov2', 'eval/fd_classifier',
    'eval/mode_kl')


class CheckpointError(UserError):
  """A checkpoint cannot be read or written; no saved file was changed."""


class DamagedError(CheckpointError):
  """A checkpoint differs from what was saved."""


class NotFiniteError(CheckpointError):
  """The state contains NaN or infinity, so it was not saved.

  Attributes:
    arrays: names of these arrays, as text.
  """

  def __init__(self, arrays: str, step: int):
    super().__init__(f'{arrays} not finite at step {step:,}, which was not saved')
    self.arrays = arrays


class Checkpoints:
  """The checkpoints of one workdir. With several processes, all must call each method that reads or writes.

  Args:
    workdir: the run's folder; the first save creates `checkpoints/` in it.
    keep: number of newest checkpoints to keep; an old one is deleted only after its successor is complete. The best
      measured checkpoints are kept as well (see `record_metrics`).
  """

  def __init__(self, workdir: str, keep: int = 2):
    # With a relative path, Orbax reports success and fails in a background thread. A bucket path is absolute already,
    # and resolving it would make it local.
    folder = epath.Path(workdir)
    self.folder = (folder if '://' in str(workdir) else folder.resolve()) / _FOLDER
    if self.folder.exists() and not self.folder.is_dir():
      raise CheckpointError(f'{self.folder}: is a file; move it away, or use another --workdir')
    self._keep = keep
    self._manager: ocp.CheckpointManager | None = None

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints on disk, oldest first; they may be damaged."""
    if not self.folder.exists():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir()
                  if path.name.isdigit() and path.is_dir() and ocp.utils.is_checkpoint_finalized(path))

  def latest_step(self) -> int | None:
    """The newest checkpoint's step, or None."""
    return max(self.steps(), default=None)

  def save(self, state: TrainState) -> None:
    """Saves under `state.step` in the background; returns when the state is copied and may be donated.

    Does nothing if the step is already saved.

    Raises:
      NotFiniteError: arrays contain NaN or infinity; the message names them.
      CheckpointError: this checkpoint, or the previous one, cannot be written.
    """
    step = int(state.step)
    self.wait()  # Orbax waits too, but steps() lists only complete saves
    if consensus.broadcast_from_main(step in self.steps()):
      return
    digests, broken = _digests(state)
    broken = consensus.shared_text(', '.join(broken[:5]) + (f' and {len(broken) - 5} more' if broken[5:] else ''))
    if broken:
      raise NotFiniteError(broken, step)
    try:
      saved = self._open().save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(digests)))
      if not saved:
        raise RuntimeError(f'Orbax refused step {step}')
    except Exception as error:
      raise self._write_error(error) from error

  def record_metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Stores a checkpoint's metrics, then deletes the checkpoints that need not be kept.

    Checkpoints are ranked by FID, or by KID or a distance between modes if FID is missing. The best checkpoint of each
    ranking is kept in addition to the newest, even if the run continues with other metrics or none.

    Args:
      step: one of `steps()`, or that of an unfinished save.
      metrics: name → value, such as `eval/fid`; replaces earlier metrics of the step.

    Raises:
      UserError: the metrics cannot be written, or a checkpoint cannot be deleted.
    """
    self.wait()

    def write():
      with files.atomic_write(self.folder / str(step) / _METRICS) as file:
        file.write(json.dumps(metrics))

    try:
      consensus.run_on_main(write)
      while (surplus := consensus.broadcast_from_main(self._first_surplus())) >= 0:
        self._open().delete(surplus)
    except OSError as error:
      raise self._write_error(error) from error

  def metrics(self, step: int) -> dict[str, float]:
    """The metrics stored with a checkpoint; {} if there are none or the file is damaged."""
    folder = self.folder / str(step)
    file = next((file for file in (folder / _METRICS, folder / 'metrics' / 'metrics') if file.exists()), None)
    if file is None:
      return {}
    try:
      found = json.loads(file.read_text())
    except ValueError:
      return {}
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}

  def _first_surplus(self) -> int:
    """The oldest step that need not be kept; -1 if there is none."""
    steps = self.steps()
    return min(set(steps) - self._preserved(steps), default=-1)

  def _preserved(self, steps: Sequence[int]) -> set[int]:
    """The steps to keep: the newest, and the best by each ranking metric."""
    kept = set(sorted(steps)[-self._keep:])
    best: dict[str, tuple[float, int]] = {}
    for step in sorted(steps):
      try:
        metrics = self.metrics(step)
      except Exception:  # each file system has its own errors; keep a checkpoint that may be the best
        kept.add(step)
        continue
      name = next((name for name in _DISTANCES if math.isfinite(metrics.get(name, math.nan))), None)
      if name and (name not in best or metrics[name] <= best[name][0]):
        best[name] = metrics[name], step
    return kept | {step for _, step in best.values()}

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Orbax's `PreservationPolicy`; process 0 decides for all."""
    del context
    preserved = self._preserved([info.step for info in checkpoints])
    return [bool(consensus.broadcast_from_main(info.step in preserved)) for info in checkpoints]

  def wait(self) -> None:
    """Waits until the last save is complete on disk."""
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
      except Exception as error:
        raise self._write_error(error) from error

  def close(self) -> None:
    """Waits for the last save and releases the background threads."""
    if self._manager is not None:
      manager, self._manager = self._manager, None
      try:
        try:
          manager.wait_until_finished()
        finally:
          manager.close()  # may raise again for the same save
      except Exception as error:
        raise self._write_error(error) from error

  def restore(self, target: TrainState, step: int) -> TrainState:
    """Restores a whole state.

    Args:
      target: shapes, dtypes and shardings of the state (`jax.ShapeDtypeStruct` leaves), for any number of devices.
      step: one of `steps()`.

    Raises:
      DamagedError: the checkpoint is damaged; the message names the folder and the damage.
      CheckpointError: the checkpoint has other arrays than `target`.
    """

    def read(folder):
      return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(target))

    return self._read_verified(target, step, read)

  def restore_ema(self, target: Any, step: int) -> Any:
    """Restores only the EMA parameters, for sampling; `target` is their tree of `jax.ShapeDtypeStruct`."""
    return self._restore_part({'ema_params': target}, step)['ema_params']

  def _restore_part(self, target: dict[str, Any], step: int) -> dict[str, Any]:
    """Restores some fields of the state; `target` has their trees of `jax.ShapeDtypeStruct` by name."""

    def read(folder):
      return ocp.PyTreeCheckpointHandler().restore(folder, args=ocp.args.PyTreeRestore(
          target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True))

    return self._read_verified(target, step, read)

  def restore_newest(self, target: TrainState, log: Callable[[str], None]) -> TrainState | None:
    """Restores the newest good state (see `restore`); None if there is no checkpoint.

    Newer damaged checkpoints are reported to `log` and renamed to `<step>.damaged`, so that their steps can be saved
    again. Raises CheckpointError, and changes nothing, if none is good or they belong to another config.
    """
    found = self._restore_newest_good(self.restore, target, log)
    if found is None:
      return None
    if found[2]:
      self.close()  # Orbax caches the list of checkpoints
      consensus.run_on_main(lambda: [self._rename_damaged(step, log) for step in found[2]])
    return found[0]

  def restore_newest_ema(self, target: Any, log: Callable[[str], None]) -> tuple[Any, int] | None:
    """Restores the newest good EMA parameters and their step; None if there is no checkpoint. Changes nothing."""
    found = self.restore_newest_part({'ema_params': target}, log)
    return found and (found[0]['ema_params'], found[1])

  def restore_newest_part(
      self, target: dict[str, Any], log: Callable[[str], None]) -> tuple[dict[str, Any], int] | None:
    """Restores some fields of the newest state in which they are good, and its step; None if there is no checkpoint.

    `target` has their trees of `jax.ShapeDtypeStruct` by name, such as `ema_params`. Changes nothing.
    """
    found = self._restore_newest_good(self._restore_part, target, log)
    return found and found[:2]

  def _restore_newest_good(
      self, restore: Callable, target: Any, log: Callable[[str], None]) -> tuple[Any, int, list[int]] | None:
    self.wait()
    refused: dict[int, str] = {}
    step = self._newest()
    while step is not None:
      try:
        state = restore(target, step)
      except DamagedError as error:
        refused[step] = str(error)
        earlier = self._newest(below=step)
        if earlier is not None:
          log(f'{error}; using step {earlier:,} instead.')
        step = earlier
        continue
      return state, step, list(refused)
    if refused:
      raise CheckpointError(f'{"; ".join(refused.values())}; no good checkpoint is left and nothing was changed; '
                            'move these folders away to start again, or use another --workdir')
    return None

  def _newest(self, below: int = 2**31 - 1) -> int | None:
    step = consensus.broadcast_from_main(max((step for step in self.steps() if step < below), default=-1))
    return None if step < 0 else step

  def _rename_damaged(self, step: int, log: Callable[[str], None]) -> None:
    aside, number = self.folder / f'{step}.damaged', 1
    while aside.exists():
      number += 1
      aside = self.folder / f'{step}.damaged{number}'
    (self.folder / str(step)).rename(aside)
    log(f'Renamed the damaged checkpoint of step {step:,} to {aside}.')

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
          self.folder,
          options=ocp.CheckpointManagerOptions(
              create=True, preservation_policy=self, cleanup_tmp_directories=True))
    return self._manager

  def _read_verified(self, target: Any, step: int, read: Callable[[epath.Path], Any]) -> Any:
    """Calls `read` and verifies names, shapes, dtypes and digests on every process."""
    folder = self.folder / str(step)
    for last_try in (False, True):  # a read error may be transient, and a damaged checkpoint is renamed
      restored, damage, trouble = None, '', ''  # trouble: an error that does not mean damage
      try:
        self._check_leaves(folder, target)
        restored = read(folder / 'state')
        expected = ocp.JsonCheckpointHandler().restore(folder / 'digests')
      except DamagedError as error:
        damage = str(error)
      except CheckpointError:
        raise  # the same on every process, since all have the same config
      except Exception as error:
        message = f'{folder}: cannot be read ({_first_line(error)})'
        if isinstance(error, (PermissionError, MemoryError)) or 'RESOURCE_EXHAUSTED' in str(error):
          trouble = message
        else:
          damage = message
      trouble, damage = consensus.shared_text(trouble), consensus.shared_text(damage)
      if trouble:
        raise CheckpointError(f'{trouble}; nothing was changed')
      if not damage or last_try:
        break
    if not damage:
      changed = [name for name, digest in _digests(restored)[0].items() if expected.get(name) != digest]
      if changed:
        damage = f'{folder}: {changed[0]} has changed since it was saved (its digest differs)'
      elif isinstance(restored, TrainState) and int(restored.step) != step:
        damage = f'{folder}: contains step {int(restored.step)}, so it was renamed or copied'
      damage = consensus.shared_text(damage)
    if damage:
      raise DamagedError(damage)
    return restored

  def _check_leaves(self, folder: epath.Path, target: Any) -> None:
    """Compares names, shapes and dtypes, because Orbax silently casts a wrong dtype."""
    if not (folder / 'state').exists():
      found = ', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'
      raise DamagedError(f"{folder}: contains {found} but no 'state'")
    try:
      metadata = ocp.StandardCheckpointHandler().metadata(folder / 'state')
    except (FileNotFoundError, ValueError) as error:
      raise DamagedError(f'{folder}: its list of arrays cannot be read') from error
    stored = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(metadata.tree)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
      name = _name(path)
      if name not in stored:
        raise CheckpointError(
            f'{folder}: has no {name}, so it belongs to another config; nothing was changed; use another '
            '--workdir')
      shape = tuple(stored[name].shape)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        continue  # stored as its uint32 data
      if shape != leaf.shape or stored[name].dtype != leaf.dtype:
        raise CheckpointError(
            f'{folder}: {name} is {stored[name].dtype}{list(shape)}, but {leaf.dtype}{list(leaf.shape)} with this '
            'config; nothing was changed; use another --workdir')

  def _write_error(self, error: Exception) -> CheckpointError:
    last = self.latest_step()
    kept = 'there is no earlier checkpoint' if last is None else f'the last good checkpoint is step {last:,}'
    if is_disk_full(error):
      return CheckpointError(f'{self.folder}: no space left on device; {kept}; free some space and resume')
    return CheckpointError(f'{self.folder}: cannot write a checkpoint ({_first_line(error)}); {kept}')


def is_disk_full(error: BaseException | None) -> bool:
  """Whether `error`, or one of its causes, is a full disk."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _digests(tree: Any) -> tuple[dict[str, str], list[str]]:
  """The first 64 bits of the SHA-256 of each leaf, by name, and the names of leaves that are not finite.

  A digest covers the bytes of the whole array in row-major order, so it does not depend on the sharding. Arrays that
  are sharded over processes are gathered one at a time.
  """
  digests, broken = {}, []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(sharding.to_host(leaf))
    digests[_name(path)] = hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()[:16]
    if jax.dtypes.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
      broken.append(_name(path))
  return digests, broken


def _name(path: tuple) -> str:
  return '.'.join(str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))) for key in path)


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__
