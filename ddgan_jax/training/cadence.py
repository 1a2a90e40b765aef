"""What is due after a step: a progress line, a sample grid, a checkpoint, an evaluation."""

from __future__ import annotations

from typing import NamedTuple

from ddgan_jax.config import TrainConfig


class Due(NamedTuple):
  """What is due after one step."""

  log: bool
  sample: bool
  save: bool
  evaluate: bool
  last: bool

  @property
  def pause(self) -> bool:
    """Whether training pauses: the steps in flight finish first, and the time is not counted as training."""
    return self.sample or self.save or self.evaluate


class Cadence:
  """Says what is due after each step of a run; everything that is on is due after the last step.

  Args:
    train: uses `num_steps` and the `_every` fields; `eval_every` 0 never evaluates.
  """

  def __init__(self, train: TrainConfig):
    self._train = train

  def after(self, step: int) -> Due:
    """What is due when `step` steps are done."""
    train = self._train
    last = step == train.num_steps
    return Due(
        log=last or step % train.log_every == 0,
        sample=last or step % train.sample_every == 0,
        save=last or step % train.checkpoint_every == 0,
        evaluate=train.eval_every > 0 and (last or step % train.eval_every == 0),
        last=last)
