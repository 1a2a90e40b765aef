"""Runs commands: parses flags, prints errors as one sentence, and returns an exit status."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging

from ddgan_jax import config as config_lib
from ddgan_jax.cli import options


def run(
    command: Callable[[types.SimpleNamespace], None], define: Callable[[options.Definer], None], doc: str,
    argv: Sequence[str] | None = None, required: Sequence[str] = (), resumes: bool = False) -> int:
  """Parses a command line and runs a command with it; can be called repeatedly in one process.

  Args:
    command: a function of the flag values that `options.parse` returns.
    define: defines the flags.
    doc: the text that --help prints before the flags.
    argv: the command line without the program name; by default that of this process.
    required, resumes: see `options.parse`.

  Returns:
    The exit status: 0, 2 after a user error (one sentence on standard error), or 130 after Ctrl-C.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    if set(options.HELP) & set(argv):
      print(options.help_text(doc, define))
      return 0
    args = options.parse(define, argv, required, resumes)
    with _log_level(args.verbosity):
      command(args)
  except (config_lib.UserError, flags.Error) as error:
    return print_error(error)
  except OSError as error:
    return print_error(f'{error.filename or "a file"}: {error.strerror or error}')
  except KeyboardInterrupt:
    return print_error('interrupted', 130)
  return 0


def start(main: Callable[[], int]) -> None:
  """Runs `main` as the command of this process and exits with its status."""
  logging.use_absl_handler()
  flags.FLAGS.mark_as_parsed()  # libraries read absl's global flags
  faulthandler.enable()
  try:
    status = main()
  except BaseException:
    _leave(1, only_if_compiling=True, report=True)
    raise
  _leave(status, only_if_compiling=status == 0)


def configure() -> None:
  """Enables the persistent compilation cache. Call it after the flags are checked, because it imports JAX."""
  from ddgan_jax.parallel import compilation  # JAX takes a second to import

  compilation.use_persistent_cache()


def print_error(error: object, status: int = 2) -> int:
  """Prints an error as one sentence on standard error; returns `status`."""
  index, _ = _process()
  who = f' (process {index})' if index else ''
  text = str(error).encode('utf-8', 'backslashreplace').decode()  # file names may not be valid Unicode
  print('\n' * sys.stdout.isatty() + f'Error{who}: {text}', file=sys.stderr, flush=True)
  return status


@contextlib.contextmanager
def _log_level(verbosity: int) -> Iterator[None]:
  """Sets absl's log level; some libraries log every file that they write."""
  before = logging.get_verbosity()
  logging.set_verbosity(verbosity)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _leave(status: int, only_if_compiling: bool, report: bool = False) -> None:
  """Ends the process, with os._exit where a normal exit would crash or hang.

  If XLA is compiling in a thread, a normal exit would abort with a core dump. After an error in one of several
  processes, JAX would wait at exit for the others, which wait for this one.
  """
  compilation = sys.modules.get('ddgan_jax.parallel.compilation')
  compiling = compilation is not None and compilation.is_compiling()
  index, count = _process()
  together = count > 1
  if compiling or (together and status):
    if report:
      sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    if together and status == 0:
      sys.modules['jax'].distributed.shutdown()
    elif together and index == 0:
      time.sleep(2)  # the others end with process 0; lets them print their error first
    os._exit(status)
  if not only_if_compiling:
    sys.exit(status)


def _process() -> tuple[int, int]:
  """This process's index and the number of processes, without initializing a backend."""
  if 'jax' not in sys.modules:
    return 0, 1
  from jax._src import distributed  # the public API initializes the backend, which may have failed

  state = distributed.global_state
  return (state.process_id, state.num_processes) if state.client else (0, 1)
