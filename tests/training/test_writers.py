"""Loggers besides TensorBoard: what they receive, on which process and thread, and that they are closed."""

import dataclasses
import threading

import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop
from tests.support import programs


class Recorder:
  """A writer that keeps what it receives."""

  def __init__(self, workdir):
    self.workdir, self.threads, self.ends = workdir, {threading.get_ident()}, []
    self.scalars, self.images, self.hparams = {}, {}, {}

  def write_scalars(self, step, scalars):
    self.threads.add(threading.get_ident())
    self.scalars.setdefault(step, {}).update(scalars)

  def write_images(self, step, images):
    self.images[step] = images

  def write_hparams(self, hparams):
    self.hparams = hparams

  def flush(self):
    self.ends.append('flush')

  def close(self):
    self.ends.append('close')


class Failing(Recorder):

  def write_scalars(self, step, scalars):
    raise RuntimeError('no network\nand more lines')


@pytest.fixture
def train(quick_config, monkeypatch):
  """Trains four steps with these writers; returns the writers that were opened."""
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  programs.share(monkeypatch)
  config = dataclasses.replace(quick_config, train=dataclasses.replace(
      quick_config.train, num_steps=4, log_every=2, sample_every=4, checkpoint_every=4))
  opened = []

  def train(workdir, *kinds):
    loop.train_and_evaluate(
        config, str(workdir), writers=[lambda workdir, kind=kind: opened.append(kind(workdir)) or opened[-1]
                                       for kind in kinds])
    return opened

  train.config, train.opened = config, opened
  return train


def test_a_writer_receives_scalars_images_and_hyperparameters(train, tmp_path, capsys):
  (writer,) = train(tmp_path, Recorder)
  assert writer.workdir == str(tmp_path) and writer.ends == ['flush', 'close']
  assert set(writer.scalars) == {1, 2, 4} and {'loss/d', 'loss/g', 'lr/g'} <= set(writer.scalars[4])
  assert all(np.isfinite(float(value)) for value in writer.scalars[4].values())
  grid = writer.images[4]['samples']
  assert set(writer.images) == {4} and grid.shape == (1, 102, 102, 1) and grid.dtype == np.uint8
  assert writer.hparams == config_lib.flatten(train.config)
  assert len(writer.threads) == 1 and threading.get_ident() not in writer.threads
  assert 'could not be written' not in capsys.readouterr().out


def test_a_failing_writer_stops_neither_the_run_nor_the_others(train, tmp_path, capsys):
  def unopened(workdir):
    raise ImportError("No module named 'wandb'")

  failing, good = train(tmp_path, unopened, Failing, Recorder)
  assert {2, 4} <= set(good.scalars) and good.ends == failing.ends == ['flush', 'close']
  assert Checkpoints(tmp_path).steps() == [4]
  printed = capsys.readouterr().out
  for sentence in ("The events of a writer could not be written (No module named 'wandb'); the run itself is not",
                   'The events of Failing could not be written (no network); the run itself is not affected.'):
    assert printed.count(sentence) == 1


def test_writers_are_closed_after_an_error(train, tmp_path, monkeypatch):
  def fail(self, state):
    raise ZeroDivisionError

  monkeypatch.setattr(Checkpoints, 'save', fail)
  with pytest.raises(ZeroDivisionError):
    train(tmp_path, Recorder)
  (writer,) = train.opened
  assert writer.ends == ['close'] and set(writer.scalars) >= {2}


def test_a_finished_run_opens_no_writer(train, tmp_path):
  assert len(train(tmp_path, Recorder)) == 1
  assert len(train(tmp_path, Recorder)) == 1


def test_only_process_0_opens_writers(tmp_path):
  opened = []
  writer = tensorboard.EventWriter(str(tmp_path), is_main=False, writers=[opened.append])
  writer.scalars(1, {'loss_d': 1.0})
  writer.flush()
  writer.close()
  assert not opened
