"""Which actions are due after a step: progress line, sample grid, checkpoint, evaluation."""

from __future__ import annotations

from typing import NamedTuple

from ddgan_jax.config import TrainConfig


class Due(NamedTuple):
  """The actions that are due after one step."""

  log: bool
  sample: bool
  save: bool
  evaluate: bool
  last: bool

  @property
  def pause(self) -> bool:
    """Whether training pauses: steps in flight finish first, and the pause does not count as training time."""
    return self.sample or self.save or self.evaluate


class Cadence:
  """Decides which actions are due after each step; after the last step, all enabled actions are.

  Args:
    train: uses `num_steps` and the `*_every` fields; `eval_every=0` disables evaluation.
  """

  def __init__(self, train: TrainConfig):
    self._train = train

  def after(self, step: int) -> Due:
    """The actions that are due when `step` steps are done."""
    train = self._train
    last = step == train.num_steps
    return Due(
        log=last or step % train.log_every == 0,
        sample=last or step % train.sample_every == 0,
        save=last or step % train.checkpoint_every == 0,
        evaluate=train.eval_every > 0 and (last or step % train.eval_every == 0),
        last=last)
