"""Calls commands in this process and captures their output."""

import contextlib
import io
import time
from typing import NamedTuple
from unittest import mock

import jax

from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import tensorboard


class Result(NamedTuple):
  """The result of a command.

  Attributes:
    status: exit status.
    out, err: captured output.
  """

  status: int
  out: str
  err: str


def run_command(main, *args, cwd=None, devices=1, events=None) -> Result:
  """Calls a command's `main` with these arguments.

  Args:
    main: such as `ddgan_jax.sample.main`.
    *args: the command line; each argument is converted with `str`.
    cwd: the working directory of the call.
    devices: how many of this process's devices the command sees.
    events: opens a run's event writer, such as `scalars.Writer`; by default a run writes no events.
  """
  out, err = io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as exits:
    if cwd is not None:
      exits.enter_context(contextlib.chdir(cwd))
    exits.enter_context(mock.patch.object(tensorboard, '_open_writer', events or (lambda workdir: None)))
    visible = jax.devices()[:devices]
    for name, value in (('devices', visible), ('local_devices', visible), ('device_count', len(visible)),
                        ('local_device_count', len(visible))):
      exits.enter_context(mock.patch.object(jax, name, lambda *args, value=value, **kwargs: value))
    exits.enter_context(contextlib.redirect_stdout(out))
    exits.enter_context(contextlib.redirect_stderr(err))
    try:
      status = main([str(arg) for arg in args])
    finally:
      while compilation.is_compiling():  # a separate process would exit, but this one has more tests to run
        time.sleep(0.05)
  return Result(status, out.getvalue(), err.getvalue())


def succeed(main, *args, **kwargs) -> str:
  """Calls a command that must succeed; returns its output."""
  result = run_command(main, *args, **kwargs)
  assert result.status == 0, result.err
  return result.out
