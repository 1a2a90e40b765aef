"""The programs of a run: which ones a step needs, when they are compiled, and their batches."""

import contextlib
import dataclasses
import threading
import types

import jax
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.data import pipeline, sources
from ddgan_jax.parallel import consensus, sharding
from ddgan_jax.training import programs as programs_lib
from ddgan_jax.training.programs import Program, StepPrograms
from tests.support import quick_config_dict

NO_SIGNAL = types.SimpleNamespace(signal=None)
SIGNAL = types.SimpleNamespace(signal='SIGTERM')


def make_programs(method='ddgan', **fields):
  """The programs of the quick run on one device; `fields` are overrides by section."""
  config = config_lib.from_config_dict(quick_config_dict() | {'method': method})
  for section, values in fields.items():
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
  return StepPrograms(config, sharding.make_mesh(jax.devices()[:1]))


class Lowered:
  """A program that compiles once `may_compile` is set."""

  def __init__(self, name, error=None):
    self.may_compile = threading.Event()
    self._name, self._error = name, error

  def compile(self):
    assert self.may_compile.wait(60)
    if self._error:
      raise self._error
    return lambda *arguments: (self._name, *arguments)


@pytest.mark.parametrize('fields, names, from_step_1, step_names', [
    ({}, ('r1', 'plain'), ('plain', 'r1'), ['r1', 'plain', 'plain', 'plain', 'r1']),
    ({'optim': {'lazy_reg': 1}}, ('r1',), ('r1',), ['r1'] * 5),
    ({'optim': {'r1_gamma': 0.0}}, ('plain',), ('plain',), ['plain'] * 5),
    ({'method': 'gaussian'}, ('plain',), ('plain',), ['plain'] * 5),
    ({'train': {'steps_per_call': 2, 'log_every': 2}}, ('call',), ('call',), ['call'] * 5)], ids=str)
def test_only_needed_programs_are_compiled_the_first_step_first(fields, names, from_step_1, step_names):
  programs = make_programs(**fields)
  assert programs.names() == names and programs.names(1) == from_step_1
  assert [programs.name(step) for step in range(5)] == step_names


def test_programs_are_traced_once_in_order_and_compiled_in_parallel(monkeypatch):
  programs = make_programs()
  lowered = {name: Lowered(name) for name in ('r1', 'plain')}
  traced = []
  monkeypatch.setattr(programs, 'lower', lambda name: traced.append(name) or lowered[name])
  programs.start(programs.names(0))
  programs.start(programs.names(0))
  assert traced == ['r1', 'plain']
  lowered['plain'].may_compile.set()  # the second one need not wait for the first
  assert programs.wait(1, NO_SIGNAL)('state') == ('plain', 'state')
  lowered['r1'].may_compile.set()
  assert programs.wait(0, NO_SIGNAL)('state') == ('r1', 'state')


def test_a_signal_ends_the_wait_for_a_program(monkeypatch):
  programs = make_programs()
  lowered = Lowered('r1')
  monkeypatch.setattr(programs, 'lower', lambda name: lowered)
  programs.start(['r1'])
  stop = types.SimpleNamespace(signal=None)
  threading.Timer(0.3, lambda: setattr(stop, 'signal', 'SIGTERM')).start()
  assert programs.wait(0, stop) is None
  lowered.may_compile.set()
  assert programs.wait(0, NO_SIGNAL) and programs.wait(0, SIGNAL) is None


def test_background_errors_are_raised_by_wait(monkeypatch):
  programs = make_programs()
  lowered = Lowered('r1', MemoryError('no memory to compile'))
  lowered.may_compile.set()
  monkeypatch.setattr(programs, 'lower', lambda name: lowered)
  programs.start(['r1'])
  with pytest.raises(MemoryError, match='no memory to compile'):
    programs.wait(0, NO_SIGNAL)


def test_processes_synchronise_only_before_the_first_call(monkeypatch):
  barriers = []
  monkeypatch.setattr(consensus, 'barrier', barriers.append)
  one, two = Program(lambda x: x + 1), Program(lambda x: x + 2)
  assert [one(0), one(1), two(0), one(2)] == [1, 2, 2, 3]
  assert len(barriers) == 2 and len(set(barriers)) == 2


def test_programs_take_the_state_and_batches_of_a_run():
  """Two consecutive steps; the second is without R1, so its metrics have no penalty."""
  programs = make_programs()
  source = sources.ArraySource(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8), None, 'some')
  programs.start(programs.names())
  state = programs.create_state()
  penalised = []
  with contextlib.closing(programs.batches(source, [(0, 2)])) as batches:
    for step, batch in enumerate(batches):
      state, metrics = programs.wait(step, NO_SIGNAL)(state, *batch)
      penalised.append('r1_penalty' in metrics)
  assert penalised == [True, False] and int(state.step) == 2


def test_the_initial_state_is_that_of_the_seed():
  programs = make_programs()
  expected = train_state.create(programs.config)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), programs.create_state().g_params, expected.g_params)


@pytest.mark.parametrize('steps_per_call', [1, 2])
def test_batches_follow_the_ranges_in_order(steps_per_call):
  programs = make_programs(train={'steps_per_call': steps_per_call, 'log_every': 2})
  source = sources.ArraySource(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8), None, 'some')
  found = [images for images, in programs.batches(source, [(3, 4), (7, 10)])]
  config = programs.config
  expected = [pipeline.global_batch(source, config.data, config.seed, i)['image'] for i in (3, 7, 8, 9)]
  np.testing.assert_array_equal(np.concatenate(found), np.stack(expected).reshape(-1, *found[0].shape[1:]))
  assert len(found) == 4 // steps_per_call and found[0].shape == programs.abstract_batch['image'].shape


def test_closing_the_batches_stops_reading_ahead(monkeypatch):
  """Reading ahead ends with training."""
  closed = []

  def host_batches(*arguments):
    try:
      for _ in range(100):
        yield {'image': np.zeros((32, 8, 8, 1), np.float32)}
    finally:
      closed.append(True)

  monkeypatch.setattr(pipeline, 'batches', host_batches)
  batches = make_programs().batches(None, [(0, 100)])
  next(batches)
  assert not closed
  batches.close()
  assert closed


def test_only_a_signal_ends_a_wait_early():
  future = programs_lib.compilation.run_in_background(lambda: 3)
  assert programs_lib.wait_for(future, NO_SIGNAL) == 3 and programs_lib.wait_for(future, SIGNAL) is None
