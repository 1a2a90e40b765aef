"""Rollback after NaN or infinity: which batches it skips, and when it gives up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from etils import epath

from ddgan_jax.config import UserError
from ddgan_jax.parallel import consensus
from ddgan_jax.utils import files

MAX_ROLLBACKS = 3  # to the same step
_FILE = 'skipped.json'
ADVICE = 'try a lower optim.lr_d and lr_g or a larger optim.r1_gamma'


class Diverged(Exception):
  """Losses or parameters are NaN or infinite.

  Attributes:
    what: names of the losses or parameters.
    step: the first such step.
  """

  def __init__(self, what: str, step: int):
    super().__init__(f'{what} not finite at step {step:,}')
    self.what = what
    self.step = step


class SkippedBatches:
  """Maps steps to global batches in a run that may have been rolled back.

  A rollback from step f to step c skips the n global batches of those steps (n = f - c, unless some were skipped
  before): from step c on, every step uses the batch n positions later. Its noise and learning rates do not change. The
  batch of a step is thus a function of the step and of `skipped.json` in the workdir, `[{"step": c, "batches": n}, …]`,
  and a resumed run uses the same batches as an uninterrupted run.
  """

  def __init__(self, workdir: str, log: Callable[[str], None] = print):
    self._file = epath.Path(workdir) / _FILE
    self._entries: list[tuple[int, int]] = []
    if self._file.exists():
      try:
        self._entries = [(int(entry['step']), int(entry['batches'])) for entry in json.loads(self._file.read_text())]
      except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{self._file}: cannot be read ({error}); restore this list of the batches that the run '
                        'skips, {"step": int, "batches": int} each') from error
    if self._entries:
      log(f'{self._file}: this run skips {sum(batches for _, batches in self._entries):,} global batches.')
    consensus.check_same(str(self._file), f'{len(self._entries)} entries, {self._entries}')

  def batch(self, step: int) -> int:
    """The index of the global batch of the training step from `step` to `step + 1`."""
    return step + sum(batches for since, batches in self._entries if since <= step)

  def ranges(self, first_step: int, num_steps: int) -> Iterator[tuple[int, int]]:
    """Yields the batches of steps first_step … num_steps - 1 as ranges [first, last), in order."""
    bounds = sorted({first_step, num_steps, *(step for step, _ in self._entries if first_step < step < num_steps)})
    for start, stop in zip(bounds, bounds[1:], strict=False):
      yield self.batch(start), self.batch(start) + stop - start

  def roll_back(self, to_step: int, error: Diverged, write: bool) -> str:
    """Skips the batches between the last good step and `error`; returns a message. `write` updates skipped.json.

    Raises UserError after too many rollbacks to this step.
    """
    first, last = self.batch(to_step), self.batch(error.step - 1)
    count = sum(step == to_step for step, _ in self._entries)
    if count >= MAX_ROLLBACKS:
      raise UserError(f'{error}, again after {count} rollbacks to step {to_step:,}; the data are not the cause; '
                      f'{ADVICE}')
    # The range first … last includes the batches of later entries.
    self._entries = [entry for entry in self._entries if entry[0] <= to_step] + [(to_step, last + 1 - first)]
    if write:
      with files.atomic_write(self._file) as file:
        file.write(json.dumps([{'step': step, 'batches': n} for step, n in self._entries]) + '\n')
    return (f'{error}: rolled back to step {to_step:,}, skipping global batches {first:,} to {last:,} '
            f'(rollback {count + 1} of {MAX_ROLLBACKS} to this step; {self._file}).')
