"""Commands called in this process, with what they print captured."""

import contextlib
import io
import sys
from typing import NamedTuple


class Result(NamedTuple):
  """How a command ended.

  Attributes:
    status: its exit status.
    out, err: what it printed.
  """

  status: int
  out: str
  err: str


def run_command(main, *args, cwd=None, tensorflow=False) -> Result:
  """Calls a command's `main` with these arguments.

  Args:
    main: such as `ddgan_jax.sample.main`.
    *args: the command line, as anything that `str` turns into its words.
    cwd: the folder that it is called in.
    tensorflow: whether TensorFlow can be imported; without it a run writes no events and starts sooner.
  """
  out, err = io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as exits:
    if cwd is not None:
      exits.enter_context(contextlib.chdir(cwd))
    if not tensorflow:
      exits.enter_context(hidden('tensorflow'))
    exits.enter_context(contextlib.redirect_stdout(out))
    exits.enter_context(contextlib.redirect_stderr(err))
    status = main([str(arg) for arg in args])
  return Result(status, out.getvalue(), err.getvalue())


def succeed(main, *args, **kwargs) -> str:
  """What a command prints that succeeds."""
  result = run_command(main, *args, **kwargs)
  assert result.status == 0, result.err
  return result.out


@contextlib.contextmanager
def hidden(module):
  """Makes `import module` fail as where it is not installed."""
  missing = object()
  before = sys.modules.get(module, missing)
  sys.modules[module] = None
  try:
    yield
  finally:
    if before is missing:
      del sys.modules[module]
    else:
      sys.modules[module] = before
