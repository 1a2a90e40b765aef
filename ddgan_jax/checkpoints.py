"""Orbax checkpoints of a run: the only file that imports Orbax.

A checkpoint is `<workdir>/checkpoints/<step>/` with the whole `TrainState` under `state` and a digest of every array
under `digests`, because Orbax does not notice bytes that changed on disk. Orbax writes to a temporary name and renames,
so a killed save leaves nothing that a restart would read.
"""

from __future__ import annotations

import errno
import hashlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from ddgan_jax.config import UserError
from ddgan_jax.train_state import TrainState

_FOLDER = 'checkpoints'


class CheckpointError(UserError):
  """A checkpoint cannot be read or written; nothing that was saved has been changed."""


class Checkpoints:
  """The checkpoints of one workdir.

  Args:
    workdir: the run's folder; `checkpoints/` is made in it by the first save.
    keep: how many of the newest checkpoints stay; an old one goes only after its successor is complete.
  """

  def __init__(self, workdir: str, keep: int = 2):
    # Absolute: with a relative path Orbax reports success and fails in a background thread.
    self.folder = epath.Path(workdir).resolve() / _FOLDER
    if self.folder.exists() and not self.folder.is_dir():
      raise CheckpointError(f'{self.folder}: is a file, must be a folder of checkpoints or absent')
    self._keep = keep
    self._manager: ocp.CheckpointManager | None = None

  def steps(self) -> list[int]:
    """Complete checkpoints on disk, oldest first."""
    if not self.folder.exists():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

  def latest_step(self) -> int | None:
    """The newest checkpoint's step, or None."""
    return max(self.steps(), default=None)

  def save(self, state: TrainState) -> None:
    """Saves in the background; returns when the state is copied and may be donated. A step saved already is kept."""
    step = int(state.step)
    self.wait()  # Orbax would too; a save under way counts below only when it is complete
    if step == self.latest_step():
      return
    try:
      saved = self._open().save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(_digests(state))))
      if not saved:
        raise RuntimeError(f'Orbax refused step {step}')
    except Exception as error:
      raise self._write_error(error) from error

  def wait(self) -> None:
    """Returns when the last save is complete on disk."""
    if self._manager is not None:
      try:
        self._manager.wait_until_finished()
      except Exception as error:
        raise self._write_error(error) from error

  def close(self) -> None:
    """Waits and releases the background threads."""
    if self._manager is not None:
      self.wait()
      self._manager.close()
      self._manager = None

  def restore(self, target: TrainState, step: int) -> TrainState:
    """Reads a whole state.

    Args:
      target: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct` leaves).
      step: one of `steps()`.

    Raises:
      CheckpointError: names the folder and what is wrong with it.
    """
    folder = self.folder / str(step) / 'state'
    self._check_leaves(folder, target, step)
    try:
      restored = ocp.StandardCheckpointer().restore(folder, target)
    except Exception as error:
      raise self._read_error(step, error) from error
    self._check_digests(restored, step)
    return restored

  def restore_ema(self, target: Any, step: int) -> Any:
    """Reads only the EMA parameters, for sampling; `target` is their tree of `jax.ShapeDtypeStruct`."""
    folder = self.folder / str(step) / 'state'
    partial = {'ema_params': target}
    self._check_leaves(folder, partial, step)
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                partial, restore_args=ocp.checkpoint_utils.construct_restore_args(partial), partial_restore=True))
    except Exception as error:
      raise self._read_error(step, error) from error
    self._check_digests(restored, step)
    return restored['ema_params']

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
          self.folder,
          options=ocp.CheckpointManagerOptions(
              create=True, preservation_policy=checkpoint_managers.LatestN(self._keep)))
    return self._manager

  def _check_leaves(self, folder: epath.Path, target: Any, step: int) -> None:
    """Compares names, shapes and dtypes first: Orbax casts a wrong dtype silently."""
    if not folder.exists():
      found = ', '.join(sorted(path.name for path in folder.parent.iterdir())) or 'nothing'
      raise CheckpointError(
          f"{folder.parent}: holds {found} and no 'state', so it is no checkpoint of ddgan_jax or a damaged one; "
          f'{self._advice(step)}')
    try:
      metadata = ocp.StandardCheckpointer().metadata(folder).item_metadata.tree
    except Exception as error:
      raise self._read_error(step, error) from error
    stored = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(metadata)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
      name = _name(path)
      if name not in stored:
        raise CheckpointError(
            f'{folder.parent}: has no {name}, which the config asks for; it belongs to another configuration; '
            f'{self._advice(step)}')
      shape = tuple(stored[name].shape)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        continue  # stored as its uint32 data
      if shape != leaf.shape or stored[name].dtype != leaf.dtype:
        raise CheckpointError(
            f'{folder.parent}: {name} is {stored[name].dtype}{list(shape)}, but the config asks for '
            f'{leaf.dtype}{list(leaf.shape)}; {self._advice(step)}')

  def _check_digests(self, restored: Any, step: int) -> None:
    folder = self.folder / str(step)
    try:
      with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        expected = checkpointer.restore(folder / 'digests')
    except Exception as error:
      raise self._read_error(step, error) from error
    for name, digest in _digests(restored).items():
      if expected.get(name) != digest:
        raise CheckpointError(f'{folder}: {name} is not what was saved (its digest differs), so the files are damaged; '
                              f'{self._advice(step)}')

  def _advice(self, step: int) -> str:
    earlier = [other for other in self.steps() if other < step]
    go_on = f'to go on from step {earlier[-1]}' if earlier else 'to start again'
    return f'nothing was changed; move that folder away {go_on}, or choose another --workdir'

  def _read_error(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(f'{self.folder / str(step)}: cannot be read ({_first_line(error)}); {self._advice(step)}')

  def _write_error(self, error: Exception) -> CheckpointError:
    last = self.latest_step()
    kept = 'there is no earlier checkpoint' if last is None else f'the last good checkpoint is step {last}'
    if is_disk_full(error):
      return CheckpointError(f'{self.folder}: no space left on the device; {kept}; free some and run the same command')
    return CheckpointError(f'{self.folder}: a checkpoint could not be written ({_first_line(error)}); {kept}')


def is_disk_full(error: BaseException | None) -> bool:
  """Whether `error`, or what it was raised from, is a full disk."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _digests(tree: Any) -> dict[str, str]:
  """The first 64 bits of each leaf's SHA-256, by its name."""
  digests = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    digests[_name(path)] = hashlib.sha256(np.ascontiguousarray(leaf)).hexdigest()[:16]
  return digests


def _name(path: tuple) -> str:
  return '.'.join(str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))) for key in path)


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__
