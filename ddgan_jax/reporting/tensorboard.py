"""TensorBoard: scalars and images written by CLU, one HParams session per run, and traces for its profiler.

Other loggers receive the same through CLU's writer interface; see `EventWriter`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ddgan_jax.utils import files

# TensorBoard groups its charts by the part before the slash.
_TAGS = {
    'loss_d': 'loss/d', 'loss_d_real': 'loss/d_real', 'loss_d_fake': 'loss/d_fake', 'loss_g': 'loss/g',
    'loss_d_pairing': 'loss/d_pairing', 'r1_penalty': 'loss/r1', 'r2_penalty': 'loss/r2', 'cost': 'loss/cost',
    'regression': 'loss/regression', 'reconstruction': 'loss/reconstruction',
    'logits_real': 'logits/real', 'logits_fake': 'logits/fake', 'grad_norm_d': 'grad_norm/d',
    'grad_norm_g': 'grad_norm/g', 'lr_d': 'lr/d', 'lr_g': 'lr/g', 'beta2': 'schedule/beta2',
    'r1_gamma': 'schedule/r1_gamma',
    'images_per_second': 'speed/images_per_second', 'data_wait': 'speed/data_wait',
    'compile_seconds': 'speed/compile_seconds', 'step_memory_mib': 'memory/step_mib',
    'device_peak_mib': 'memory/device_peak_mib'}
# Sorts before all other event files of a workdir, which have their time instead of the 0.
_HPARAMS_FILE = 'events.out.tfevents.0.hparams'


def tag(name: str) -> str:
  """The TensorBoard tag of a metric: `loss_d` is `loss/d`; a name that is already grouped, `eval/fid`, stays."""
  return _TAGS.get(name, name)


class EventWriter:
  """Writes scalars, images and hyperparameters for TensorBoard, and to other writers, from a background thread.

  CLU's writer needs TensorFlow, which takes seconds to import; the thread imports it while the run compiles. Without
  TensorFlow, or unless `is_main`, no events are written. If a writer fails, the run and the other writers continue, and
  `flush` says so.

  Args:
    workdir: the run's folder.
    is_main: whether this is process 0, which writes.
    writers: functions of the workdir that open further writers, on process 0 only. A writer has the methods
      `write_scalars(step, scalars)`, `write_images(step, images)`, `write_hparams(hparams)`, `flush()` and `close()` of
      `clu.metric_writers.MetricWriter`; all are called from one thread. Scalars have the names of `tag`, an image is
      [1, H, W, C] uint8, and hyperparameters are the config's fields, such as `optim.lr_g`.
  """

  def __init__(self, workdir: str, is_main: bool = True, writers: Sequence[Callable[[str], Any]] = ()):
    self._workdir = workdir
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    openers = (_open_writer, *writers) if is_main else ()
    self._outputs = [_Output(i == 0, self._thread.submit(opener, workdir)) for i, opener in enumerate(openers)]

  def hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the run's HParams session, replacing that of an earlier start."""
    self._submit(lambda writer: writer.write_hparams(dict(hparams)),
                 for_tensorboard=lambda writer: _write_hparams(self._workdir, hparams))

  def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes metrics under their `tag`; keys are the names from the training step."""
    tagged = {tag(name): value for name, value in scalars.items()}
    self._submit(lambda writer: writer.write_scalars(step, tagged))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes one [H, W, C] uint8 picture at `step`."""
    self._submit(lambda writer: writer.write_images(step, {name: image[None]}))

  def flush(self, log: Callable[[str], None] = print) -> None:
    """Waits until everything is written; if a writer has failed, passes `log` a sentence that says why."""
    self._submit(lambda writer: writer.flush()).result()
    self._report(log)

  def _report(self, log: Callable[[str], None]) -> None:
    """Passes `log` a sentence for each writer that has failed since the last report."""
    for output in self._outputs:
      if output.error is not None and not output.is_reported:
        output.is_reported = True
        reason = str(output.error).strip().partition('\n')[0][:200] or type(output.error).__name__
        log(f'{output.name} could not be written ({reason}); the run itself is not affected.')

  def close(self, log: Callable[[str], None] = print) -> None:
    """Closes all writers and stops the thread; if a writer has failed, passes `log` a sentence that says why."""
    self._submit(lambda writer: writer.close())
    self._thread.shutdown()
    self._report(log)

  def _submit(
      self, write: Callable[[Any], None], for_tensorboard: Callable[[Any], None] | None = None
  ) -> concurrent.futures.Future:
    def write_all():
      for output in self._outputs:
        output.write(for_tensorboard if output.is_tensorboard and for_tensorboard else write)

    return self._thread.submit(write_all)


@dataclasses.dataclass
class _Output:
  """One writer, which may not be open yet, and its first error."""

  is_tensorboard: bool
  writer: concurrent.futures.Future
  error: Exception | None = None
  is_reported: bool = False

  @property
  def name(self) -> str:
    if self.is_tensorboard:
      return 'TensorBoard events'
    opened = self.writer.exception() is None
    return f'The events of {type(self.writer.result()).__name__}' if opened else 'The events of a writer'

  def write(self, write: Callable[[Any], None]) -> None:
    try:
      if (writer := self.writer.result()) is not None:
        write(writer)
    except Exception as error:  # each library has its own errors
      self.error = self.error or error


def _open_writer(workdir: str):
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # otherwise TensorFlow announces oneDNN on standard error
  try:
    import tensorflow as tf
    from clu import metric_writers
  except ImportError as error:
    print(f'No TensorBoard events will be written: {error.name} is not installed.', flush=True)
    return None
  tf.config.set_visible_devices([], 'GPU')  # otherwise TensorFlow takes the memory that JAX needs
  return metric_writers.create_default_writer(workdir, asynchronous=False)


def _write_hparams(workdir: str, hparams: Mapping[str, Any]) -> None:
  """Replaces the workdir's HParams session.

  TensorBoard shows one session per folder: the first that it reads. Event files are only appended to, so a resumed run
  would show the fields of its first start. A separate file can be replaced; its name makes TensorBoard read it first.
  """
  from tensorboard.compat.proto import event_pb2
  from tensorboard.plugins.hparams import api
  from tensorboard.summary.writer.record_writer import RecordWriter

  summary = api.hparams_pb({name: _readable(value) for name, value in hparams.items()}, trial_id=workdir)
  with files.atomic_write(os.path.join(workdir, _HPARAMS_FILE), 'wb') as file:
    writer = RecordWriter(file)
    for content in ({'file_version': 'brain.Event:2'}, {'summary': summary}):
      writer.write(event_pb2.Event(wall_time=time.time(), **content).SerializeToString())


def _readable(value: Any) -> bool | int | float | str:
  """TensorBoard accepts numbers, booleans and strings: (1, 2, 2) is written as '1,2,2'."""
  if isinstance(value, tuple | list):
    return ','.join(map(str, value))
  return value if isinstance(value, bool | int | float | str) else str(value)


class Profile:
  """A trace of `num_steps` steps for TensorBoard's profiler, in `<workdir>/profile`, once in a workdir.

  Only the process that `is_main` writes; the others pause at the same steps, so that all run the same programs.
  """

  def __init__(self, workdir: str, first_step: int, num_steps: int, is_main: bool = True):
    self._folder = epath.Path(workdir) / 'profile'
    self._bounds = [] if not num_steps or self._folder.exists() else [first_step, first_step + num_steps]
    self._is_main = is_main
    self._open = False

  def is_due(self, step: int) -> bool:
    """Whether to call `switch` before the step that starts from `step`, with no step in flight."""
    return step in self._bounds

  def switch(self, log: Callable[[str], None] = print) -> None:
    """Starts the trace, or ends it and reports where it is."""
    if self._open:
      self.close()
      log(f'The profile is in {self._folder}; TensorBoard shows it.')
    elif self._is_main:
      jax.profiler.start_trace(str(self._folder))
      self._open = True

  def close(self) -> None:
    """Ends a trace that is still open at the end of a run."""
    if self._open:
      self._open = False
      self._bounds = []
      jax.profiler.stop_trace()
