"""The averages of post-hoc EMA that a run saves beside its checkpoints: `<workdir>/ema_profiles/<step>.npz`."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from etils import epath

from ddgan_jax import posthoc_ema
from ddgan_jax.config import UserError
from ddgan_jax.parallel import consensus, sharding
from ddgan_jax.train_state import ProfiledState, TrainState
from ddgan_jax.utils import files

_FOLDER = 'ema_profiles'
_MAX_ERROR = 0.1  # relative, of a reconstructed profile


def write(workdir: str, state: TrainState) -> None:
  """Writes the averages of a state, if it has any; with several processes, all must call it.

  Raises UserError if they cannot be written.
  """
  if not isinstance(state, ProfiledState):
    return
  arrays = {f'{i}.{_name(path)}': sharding.to_host(leaf) for i, average in enumerate(state.ema_profiles)
            for path, leaf in jax.tree_util.tree_leaves_with_path(average)}
  path = epath.Path(workdir) / _FOLDER / f'{int(state.step)}.npz'

  def save():
    path.parent.mkdir(exist_ok=True)
    with files.atomic_write(path, 'wb') as file:
      np.savez(file, **arrays)

  try:
    consensus.run_on_main(save)
  except OSError as error:
    raise UserError(f'{path} cannot be written ({error.strerror or error})') from error


def resume(workdir: str, state: TrainState | None) -> None:
  """Makes the files agree with the state from which a run continues, None at its start: deletes those of later steps,
  and writes that of the state if an interrupted save lacks it.
  """
  step = 0 if state is None else int(state.step)
  folder = epath.Path(workdir) / _FOLDER

  def delete():
    for path in folder.iterdir() if folder.exists() else ():
      if path.stem.isdecimal() and int(path.stem) > step:
        path.unlink()

  consensus.run_on_main(delete)
  if state is not None and isinstance(state, ProfiledState) and consensus.broadcast_from_main(
      not (folder / f'{step}.npz').exists()):
    write(workdir, state)


def saved_steps(workdir: str | os.PathLike) -> list[int]:
  """The steps whose averages are saved, in order."""
  folder = epath.Path(workdir) / _FOLDER
  return sorted(int(path.stem) for path in folder.iterdir() if path.stem.isdecimal()) if folder.exists() else []


def reconstruct(workdir: str | os.PathLike, target: Any, step: int | None, sigma_rel: float) -> tuple[Any, int]:
  """Reconstructs the average of a profile at a step.

  Args:
    workdir: the run's folder.
    target: shapes of the parameters.
    step: one of `saved_steps`; None is the last.
    sigma_rel: the profile, see `posthoc_ema`.

  Returns:
    A tree of float32 NumPy arrays like `target`, and the step.

  Raises:
    UserError: the run has no averages at `step`, a file is damaged, `sigma_rel` is out of range, or the saved averages
      cannot represent it within 10%.
  """
  folder = epath.Path(workdir) / _FOLDER
  steps = saved_steps(workdir)
  if not steps:
    raise UserError(f'sigma_rel is {sigma_rel}, but {workdir} has no {_FOLDER}; train with '
                    '--config.optim.ema_profiles')
  step = steps[-1] if step is None else step
  if step not in steps:
    raise UserError(f'step is {step}; use one of {", ".join(map(str, steps))}, the steps in {folder}')
  steps = [saved for saved in steps if saved <= step]
  try:
    weights, error = posthoc_ema.weights(steps, step, sigma_rel)
  except ValueError as mistake:
    raise UserError(str(mistake)) from None
  if error > _MAX_ERROR:
    low, high = posthoc_ema.SIGMAS
    raise UserError(f'sigma_rel is {sigma_rel}, whose profile the averages of {len(steps)} checkpoints fit only within '
                    f'{error:.0%}; use a value nearer to {low} … {high}, or save more checkpoints')
  total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), target)
  for saved, row in zip(steps, weights, strict=True):
    path = folder / f'{saved}.npz'
    try:
      total = _add(total, path, row)
    except Exception as error:  # damaged, for which zipfile raises many types
      raise UserError(f'{path} cannot be read ({type(error).__name__}: {error}); delete it to reconstruct without this '
                      'step') from error
  return jax.tree.map(np.float32, total), step


def _add(total: Any, path: epath.Path, weights: np.ndarray) -> Any:
  """Adds the weighted averages of a file to `total`."""
  with path.open('rb') as file, np.load(file) as arrays:
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf + sum(w * arrays[f'{i}.{_name(keys)}'] for i, w in enumerate(weights)), total)


def _name(path: tuple) -> str:
  return '.'.join(key.key for key in path)
