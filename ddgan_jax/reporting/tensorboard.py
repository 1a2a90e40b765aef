"""TensorBoard: events written by CLU, and traces for its profiler."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath


class EventWriter:
  """Scalars, images and hyper-parameters for TensorBoard, written by a thread of its own.

  CLU's writer needs TensorFlow, which takes seconds to import: that happens in the thread too, while the run compiles.
  Without TensorFlow, or unless `is_main`, nothing is written. Where events cannot be written the run continues without
  them, and says so once.
  """

  def __init__(self, workdir: str, is_main: bool = True):
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._writer = self._thread.submit(_open_writer, workdir) if is_main else None
    self._error: Exception | None = None

  def hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes a flat table; tuples as text, since TensorBoard knows numbers, booleans and strings."""
    table = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in hparams.items()}
    self._submit(lambda writer: writer.write_hparams(table))

  def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes `scalars` at `step`."""
    self._submit(lambda writer: writer.write_scalars(step, scalars))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes one [H, W, C] uint8 picture at `step`."""
    self._submit(lambda writer: writer.write_images(step, {name: image[None]}))

  def flush(self, log: Callable[[str], None] = print) -> None:
    """Returns when everything is on disk, or `log` has got a sentence on why it is not."""
    self._submit(lambda writer: writer.flush()).result()
    if self._error is not None:
      reason = str(self._error).strip().partition('\n')[0][:200] or type(self._error).__name__
      log(f'TensorBoard events could not be written ({reason}); the run itself is not affected.')

  def close(self) -> None:
    """Closes the file and ends the thread."""
    self._submit(lambda writer: writer.close())
    self._thread.shutdown()

  def _submit(self, write: Callable[[Any], None]) -> concurrent.futures.Future:
    return self._thread.submit(self._write, write)

  def _write(self, write: Callable[[Any], None]) -> None:
    try:
      if self._writer and (writer := self._writer.result()):
        write(writer)
    except Exception as error:  # TensorFlow has its own kinds
      self._error = self._error or error


def _open_writer(workdir: str):
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # or TensorFlow announces them on standard error
  try:
    import tensorflow as tf
    from clu import metric_writers
  except ImportError as error:
    print(f'No TensorBoard events will be written: {error.name} is not installed.', flush=True)
    return None
  tf.config.set_visible_devices([], 'GPU')  # or it would take the memory that JAX needs
  return metric_writers.create_default_writer(workdir, asynchronous=False)


class Profile:
  """A trace of `num_steps` steps for TensorBoard's profiler, in `<workdir>/profile`, once in a workdir.

  Only the process that `is_main` writes; the others stop at the same steps, so that all do the same.
  """

  def __init__(self, workdir: str, first_step: int, num_steps: int, is_main: bool = True):
    self._folder = epath.Path(workdir) / 'profile'
    self._bounds = [] if not num_steps or self._folder.exists() else [first_step, first_step + num_steps]
    self._is_main = is_main
    self._open = False

  def is_due(self, step: int) -> bool:
    """Whether `switch` is to be called before the step that starts from `step`, with none in flight."""
    return step in self._bounds

  def switch(self, log: Callable[[str], None] = print) -> None:
    """Starts the trace, or ends it and says where it is."""
    if self._open:
      self.close()
      log(f'The profile is in {self._folder}; TensorBoard shows it.')
    elif self._is_main:
      jax.profiler.start_trace(str(self._folder))
      self._open = True

  def close(self) -> None:
    """Ends a trace that is still open, at the end of a run."""
    if self._open:
      self._open = False
      self._bounds = []
      jax.profiler.stop_trace()
