"""A session closes what it opens, however it ends; and the messages at its end."""

import dataclasses
import os
import signal

import jax
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.config import UserError
from ddgan_jax.data import sources
from ddgan_jax.metrics import evaluator
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs.workdir import WorkdirError
from ddgan_jax.training import results
from ddgan_jax.training.session import Session
from tests.training.test_steps_per_call import TINY


def make_config(**train):
  config = config_lib.from_config_dict(TINY | {'eval': {'metrics': ('modes',)}})
  return dataclasses.replace(config, train=dataclasses.replace(config.train, **{'steps_per_call': 1, **train}))


def state_after(config, step):
  state = jax.jit(lambda: train_state.create(config))()
  return state.replace(step=state.step + step)


@pytest.fixture
def log(monkeypatch):
  """The calls of the event writer, in order."""
  calls = []

  class Writer:
    def __getattr__(self, name):
      return lambda *arguments: calls.append(name)

  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: calls.append('open') or Writer())
  return calls


def handlers():
  return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_creating_a_session_changes_nothing(tmp_path):
  assert not Session(make_config(), str(tmp_path / 'run')).is_finished()
  assert not (tmp_path / 'run').exists()


def test_a_failed_session_is_closed_and_can_be_repeated(tmp_path, log, capsys):
  config, before = make_config(), handlers()
  for _ in range(2):
    with pytest.raises(ZeroDivisionError), Session(config, str(tmp_path)) as session:
      assert session.restore() is None
      session.listen_for_signals()
      session.start_reporting(0)
      assert handlers() != before
      with pytest.raises(WorkdirError, match=f'another run is using it .process {os.getpid()} on '), \
          Session(config, str(tmp_path)):
        pass
      1 / 0  # noqa: B018
    assert handlers() == before
    assert log == ['open', 'close'] and (tmp_path / 'events.out.tfevents.0.hparams').exists()
    log.clear()
  assert capsys.readouterr().out.count(' points, on 8 cpu device(s). G has ') == 2


def test_a_data_error_releases_the_workdir(tmp_path, monkeypatch):
  def fail(*arguments):
    raise UserError('photos: is gone')

  with monkeypatch.context() as patch:
    patch.setattr(sources, 'load_source', fail)
    with pytest.raises(UserError, match='photos: is gone'), Session(make_config(), str(tmp_path)):
      pass
  with Session(make_config(), str(tmp_path)) as session:
    assert session.restore() is None
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      '.lock', 'config.json', 'data.json', 'data.png', 'parameters.txt']


def test_a_state_between_two_calls_is_refused(tmp_path):
  config = make_config()
  with Session(config, str(tmp_path)) as session:
    session.restore()
    session.checkpoints.save(state_after(config, 4))
  with Session(make_config(steps_per_call=3), str(tmp_path)) as session, \
      pytest.raises(UserError, match='train.steps_per_call is 3; use 1, or a divisor of 4'):
    session.restore()


def test_a_run_ends_stopped_incomplete_or_finished(tmp_path, log, capsys):
  config = make_config()
  with Session(config, str(tmp_path)) as session:
    session.restore()
    session.listen_for_signals()
    session.start_reporting(0)
    session.stop.signal = 'SIGTERM'
    assert session.finish(6) is False
    session.last_step.begin()
    session.checkpoints.save(state_after(config, 12))
    assert session.finish(12) is False
  printed = capsys.readouterr().out
  assert f'SIGTERM: saved step 6 in {tmp_path}; the same command resumes from there.' in printed
  assert f'saved the last step, 12, in {tmp_path}; the same command adds its sample grid.' in printed

  session = Session(config, str(tmp_path))
  assert not session.is_finished()
  with session:
    assert int(session.restore().step) == 12
    session.start_reporting(12)
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples' / 'step_00000012.png').write_bytes(b'')
    assert session.finish(12) is True
  assert Session(config, str(tmp_path)).is_finished()
  printed = capsys.readouterr().out
  grid = f'its last sample grid is {tmp_path}/samples/step_00000012.png.'
  assert (f'Finished 12 steps in {tmp_path}; {grid}' in printed
          and f'{tmp_path} has finished its 12 steps; {grid}' in printed)


def test_a_profile_begins_and_ends_between_calls(tmp_path, log):
  """With R1 in every second step, eleven steps are warm-up; both bounds are rounded up to whole calls of 3."""
  with Session(make_config(steps_per_call=3, profile_steps=4), str(tmp_path)) as session:
    session.restore()
    session.start_reporting(6)
    assert [step for step in range(40) if session.profile.is_due(step)] == [18, 24]


def test_a_signal_skips_the_grid_and_the_evaluation(tmp_path, log, monkeypatch):
  """Without a signal both are made, and the metrics recorded."""
  def evaluate(images):
    images.rows(0, 8)
    return {'images': images.name, 'n': 8, 'reference': None, 'n_reference': None, 'biased': True,
            'metrics': {'mode_kl': {'value': 3.0, 'features': 'none'}}}

  monkeypatch.setattr(evaluator, 'make_data_evaluator', lambda *arguments: evaluate)
  config = make_config(eval_every=6)
  state = state_after(config, 6)
  with Session(config, str(tmp_path)) as session:
    outputs = results.Results(session)
    session.restore()
    session.listen_for_signals()
    session.start_reporting(0)
    outputs.start()
    session.checkpoints.save(state)
    for number, expected in ((signal.SIGTERM, {}), (None, {'eval/mode_kl': 3.0})):
      session.stop.signal = number
      outputs.write(state, 6, sample=True, evaluate=True)
      assert session.checkpoints.metrics(6) == expected
      assert (tmp_path / 'samples' / 'step_00000006.png').exists() == bool(expected)
  assert 'write_images' in log
