"""How every command starts and ends: flags in, one sentence out for a mistake, a clean exit status."""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from collections.abc import Callable

from absl import app, flags, logging

from ddgan_jax import config as config_lib


def run(main: Callable[[list[str]], None]) -> None:
  """`app.run(main)`, with mistakes of the user's as one sentence on standard error and exit status 2."""
  app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def _guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)  # libraries log every file that they write
  status = 0
  try:
    if len(argv) > 1:
      raise config_lib.ConfigError(f'{argv[1]!r} is not understood: flags begin with --')
    main(argv)
  except config_lib.UserError as error:
    status = _say(error)
  except OSError as error:
    status = _say(f'{error.filename or "a file"}: {error.strerror or error}')
  except KeyboardInterrupt:
    status = _say('interrupted', 130)
  except BaseException:
    _leave(1, only_if_compiling=True, report=True)
    raise
  _leave(status, only_if_compiling=status == 0)


def _leave(status: int, only_if_compiling: bool, report: bool = False) -> None:
  """Ends the process, at once where an ordinary exit would do harm.

  XLA compiling in a thread would be aborted with a core dump. And after an error in one of several processes, JAX would
  wait at the end for the others, which wait for this one.
  """
  compilation = sys.modules.get('ddgan_jax.parallel.compilation')
  compiling = compilation is not None and compilation.is_busy()
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
      time.sleep(2)  # the others end with process 0; those with the same error may say so first
    os._exit(status)
  if not only_if_compiling:
    sys.exit(status)


def _process() -> tuple[int, int]:
  """This process's index and the number of processes, without starting a backend."""
  if 'jax' not in sys.modules:
    return 0, 1
  from jax._src import distributed  # the public way starts the backend, which may be what has failed

  state = distributed.global_state
  return (state.process_id, state.num_processes) if state.client else (0, 1)


def _say(error: object, status: int = 2) -> int:
  index, _ = _process()
  who = f' (process {index})' if index else ''
  text = str(error).encode('utf-8', 'backslashreplace').decode()  # names of files need not be Unicode
  print('\n' * sys.stdout.isatty() + f'Error{who}: {text}', file=sys.stderr, flush=True)
  return status


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a wrong one is a sentence, where absl prints its usage and ml_collections raises a traceback."""
  try:
    _check_file(argv)
    return flags.FLAGS(argv)
  except (flags.Error, config_lib.ConfigError) as error:
    lines = str(error).strip().splitlines()  # what a config file raises comes as a traceback in a message
    sys.exit(_say(error if len(lines) == 1 else f'--config: {lines[-1].partition(": ")[2] or lines[-1]}'))
  except (AttributeError, KeyError, TypeError, OSError, ImportError, SyntaxError) as error:
    sys.exit(_say(_explain(argv, error)))


def _explain(argv: list[str], error: Exception) -> str:
  known = [*config_lib.flatten(config_lib.Config())]
  for argument in argv:
    field = re.match(r'--config\.([\w.]+)', argument)
    if field and field[1] not in known:
      close = difflib.get_close_matches(field[1], known, n=1)
      return f'--config.{field[1]}: no such field; ' + (
          f'did you mean --config.{close[0]}?' if close else 'ddgan_jax/config/schema.py lists them all')
  return f'--config: cannot be read ({type(error).__name__}: {error})'


def _check_file(argv: list[str]) -> None:
  for i, argument in enumerate(argv):
    file = re.match(r'--?config(?:=(.*))?$', argument)
    if file:
      path = (file[1] if file[1] is not None else ' '.join(argv[i + 1:i + 2])).split(':')[0]
      if not os.path.isfile(path):
        raise config_lib.ConfigError(f'--config: no such file {path!r}; configs/ holds the recipes')
