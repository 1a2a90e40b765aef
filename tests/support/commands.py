"""Commands called in this process, with what they print captured."""

import contextlib
import io
import time
from typing import NamedTuple
from unittest import mock

import jax

from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import tensorboard


class Result(NamedTuple):
  """How a command ended.

  Attributes:
    status: its exit status.
    out, err: what it printed.
  """

  status: int
  out: str
  err: str


def run_command(main, *args, cwd=None, devices=1, events=None) -> Result:
  """Calls a command's `main` with these arguments.

  Args:
    main: such as `ddgan_jax.sample.main`.
    *args: the command line, as anything that `str` turns into its words.
    cwd: the folder that it is called in.
    devices: how many of this process's devices it sees, as on a machine that has no more.
    events: opens a run's event writer, such as `scalars.Writer`; by default a run writes no events.
  """
  out, err = io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as exits:
    if cwd is not None:
      exits.enter_context(contextlib.chdir(cwd))
    exits.enter_context(mock.patch.object(tensorboard, '_open_writer', events or (lambda workdir: None)))
    seen = jax.devices()[:devices]
    for name, value in (('devices', seen), ('local_devices', seen), ('device_count', len(seen)),
                        ('local_device_count', len(seen))):
      exits.enter_context(mock.patch.object(jax, name, lambda *args, value=value, **kwargs: value))
    exits.enter_context(contextlib.redirect_stdout(out))
    exits.enter_context(contextlib.redirect_stderr(err))
    try:
      status = main([str(arg) for arg in args])
    finally:
      while compilation.is_compiling():  # a process of its own would leave, but this one still has tests to run
        time.sleep(0.05)
  return Result(status, out.getvalue(), err.getvalue())


def succeed(main, *args, **kwargs) -> str:
  """What a command prints that succeeds."""
  result = run_command(main, *args, **kwargs)
  assert result.status == 0, result.err
  return result.out
