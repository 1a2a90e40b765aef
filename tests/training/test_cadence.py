"""Which actions are due after a step."""

import pytest

from ddgan_jax.config import TrainConfig
from ddgan_jax.training.cadence import Cadence

CADENCE = {'num_steps': 25, 'log_every': 2, 'sample_every': 10, 'checkpoint_every': 5, 'eval_every': 20}


def due(step, **fields):
  """The names of the actions that are due."""
  found = Cadence(TrainConfig(**(CADENCE | fields))).after(step)
  return {name for name, is_due in found._asdict().items() if is_due}


@pytest.mark.parametrize('step, expected', [
    (1, set()), (2, {'log'}), (5, {'save'}), (10, {'log', 'sample', 'save'}),
    (20, {'log', 'sample', 'save', 'evaluate'}), (25, {'log', 'sample', 'save', 'evaluate', 'last'})])
def test_actions_are_due_at_their_multiples_and_at_the_end(step, expected):
  assert due(step) == expected


def test_a_run_without_evaluation_never_evaluates():
  assert not any('evaluate' in due(step, eval_every=0) for step in range(1, 26))


@pytest.mark.parametrize('field', ['sample_every', 'checkpoint_every', 'eval_every'])
def test_training_pauses_for_everything_but_a_progress_line(field):
  rarely = dict.fromkeys(CADENCE, 1000)
  cadence = Cadence(TrainConfig(**(rarely | {field: 3, 'log_every': 1})))
  assert [step for step in range(1, 8) if cadence.after(step).pause] == [3, 6]
