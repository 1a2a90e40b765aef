"""Replaces `clu.metric_writers`: writes a run's scalars as lines of JSON, because TensorFlow imports slowly.

`test_main.py` reads real TensorBoard events.
"""

import json
import os
import pathlib


class Writer:

  def __init__(self, workdir):
    self._file = open(pathlib.Path(workdir) / f'events.out.tfevents.{os.getpid()}', 'a')  # noqa: SIM115

  def write_scalars(self, step, scalars):
    print(json.dumps({'step': step} | {name: float(value) for name, value in scalars.items()}), file=self._file)

  def write_hparams(self, hparams):
    pass

  def write_images(self, step, images):
    pass

  def flush(self):
    self._file.flush()

  def close(self):
    self._file.close()


def create_default_writer(workdir, asynchronous=False):
  return Writer(workdir)


def read(workdir, name):
  """{step: value} of a scalar; for a step that was repeated, the later value."""
  paths = pathlib.Path(workdir).glob('events.out.tfevents.*[0-9]')  # not the HParams session
  rows = [json.loads(line) for path in sorted(paths, key=os.path.getmtime)
          for line in path.read_text().splitlines()]
  return {row['step']: row[name] for row in rows if name in row}
