"""The steps in flight: their number, their reports, and non-finite metrics."""

import dataclasses
import io
import math
import time

import jax
import jax.numpy as jnp
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax.parallel import sharding
from ddgan_jax.reporting.progress import Progress
from ddgan_jax.training.meter import Meter, finite_means
from ddgan_jax.training.programs import Program, StepPrograms
from ddgan_jax.training.rollback import Diverged
from tests.support import quick_config_dict


class Writer:
  """Records scalars by step."""

  def __init__(self):
    self.written = {}

  def scalars(self, step, scalars):
    self.written.setdefault(step, {}).update(scalars)


class Run:
  """A meter, and what it prints and writes."""

  def __init__(self, **train):
    config = config_lib.from_config_dict(quick_config_dict())
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **{'num_steps': 12, **train}))
    self._file = io.StringIO()
    self._program = Program(jax.jit(lambda: 0).lower().compile(), compile_seconds=1.5)
    self.writer = Writer()
    progress = Progress(config.train.num_steps, config.data.batch_size, self._file)
    programs = StepPrograms(config, sharding.make_mesh(jax.devices()[:1]))
    self.meter = Meter(config, programs, progress, self.writer, time.perf_counter())

  def add(self, step, **metrics):
    self.meter.add(step, {name: jnp.asarray(value) for name, value in metrics.items()}, self._program)

  @property
  def lines(self):
    return self._file.getvalue().splitlines()


def test_the_first_step_is_reported_at_once_with_its_cost():
  run = Run()
  run.add(1, loss_g=2.0)
  first, cost, line = run.lines
  assert first.startswith('First step done 0.') and cost.startswith('Compiled the training step in 1.5 s; it needs ')
  assert line == 'step 1/12   loss_g 2.000' and run.writer.written[1]['loss_g'] == 2
  assert run.writer.written[1]['compile_seconds'] == 1.5
  run.add(2, loss_g=2.0)
  run.meter.drain()
  assert len(run.lines) == 4


def test_a_resumed_run_reports_its_step():
  run = Run(log_every=12)
  run.add(8, loss_g=2.0)
  assert run.lines[0].startswith('Resumed at step 7; next step done 0.')


def test_at_most_two_steps_are_in_flight():
  run = Run()
  for step in range(1, 6):
    run.add(step, loss_g=1.0)
  assert set(run.writer.written) == {1, 2, 3}
  run.meter.drain()
  assert set(run.writer.written) == {1, 2, 3, 4, 5}


def test_a_line_has_the_means_since_the_previous_line():
  run = Run(log_every=5)
  for step in range(1, 13):
    r1 = {'r1_penalty': 10.0 * step} if step % 4 == 1 else {}
    run.add(step, loss_d=float(step), **r1)
  run.meter.drain()
  means = {step: scalars['loss_d'] for step, scalars in run.writer.written.items() if 'loss_d' in scalars}
  assert means == {5: 3.0, 10: 8.0, 12: 11.5}
  # The penalty is averaged over the steps that have one: 1 and 5, 9, none.
  assert run.writer.written[5]['r1_penalty'] == 30 and run.writer.written[10]['r1_penalty'] == 90
  assert 'r1_penalty' not in run.writer.written[12]


def test_a_call_of_several_steps_is_reported_step_by_step():
  run = Run(steps_per_call=3, log_every=6, sample_every=12, checkpoint_every=12)
  for last in (3, 6):
    run.add(last, loss_d=[last - 2.0, last - 1.0, last], r1_penalty=[7.0, 8.0, 9.0])
  run.meter.drain()
  # lazy_reg is 4: of the steps 1 … 6, the first and the fifth (the second of its call) have R1.
  assert run.writer.written[6]['loss_d'] == 3.5 and run.writer.written[6]['r1_penalty'] == 7.5
  assert run.lines[0].startswith('First step done')


def test_non_finite_metrics_are_named_with_their_first_step():
  window = [
      (3, {'loss_d': 1.0, 'loss_g': 1.0}), (4, {'loss_d': math.nan, 'loss_g': math.inf}), (5, {'loss_d': math.nan})]
  with pytest.raises(Diverged, match='^loss_d, loss_g not finite at step 4$') as error:
    finite_means(window)
  assert error.value.step == 4 and finite_means(window[:1]) == {'loss_d': 1, 'loss_g': 1} and finite_means([]) == {}


def test_a_pause_reports_non_finite_metrics_before_the_next_line():
  run = Run(log_every=12)
  run.add(1, loss_g=1.0)
  run.add(2, loss_g=math.nan)
  with pytest.raises(Diverged, match='loss_g not finite at step 2'):
    run.meter.drain()


def test_a_reset_discards_earlier_steps():
  run = Run(log_every=4)
  run.add(1, loss_g=1.0)
  run.add(2, loss_g=math.nan)
  run.meter.reset()
  for step in range(1, 5):
    run.add(step, loss_g=float(step))
  run.meter.drain()
  assert run.writer.written[4]['loss_g'] == 2.5
  assert sum(line.startswith('First step') for line in run.lines) == 1
