"""Parses the flags of a command, including the recipe of `--config` and its overrides."""

from __future__ import annotations

import difflib
import functools
import os
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.config import ConfigError, UserError, exported, recipes, resuming
from ddgan_jax.parallel import processes

HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')


class Recipe(NamedTuple):
  """The value of --config.

  Attributes:
    name: the name of the recipe's file, without folder and extension; '' for a run's own config.
    fields: the whole config, with command-line overrides; `config.from_config_dict` checks it.
    overrides: the fields set on the command line, such as {'train.num_steps': 100}.
  """

  name: str
  fields: ml_collections.ConfigDict
  overrides: dict[str, Any]


class Definer:
  """Defines the flags of one command with absl's functions, such as `define.string(name, default, help)`."""

  def __init__(self):
    self.values = flags.FlagValues()
    self.string, self.integer, self.float, self.boolean, self.enum, self.list = (
        functools.partial(function, flag_values=self.values) for function in (
            flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_boolean, flags.DEFINE_enum,
            flags.DEFINE_list))

  def config(self, purpose: str = 'A recipe') -> None:
    """Defines --config, which `parse` replaces by a `Recipe`."""
    self.string('config', None, f'{purpose}: an installed name (digits) or the path of a .py file, optionally with an '
                'argument (folder:32). --config.SECTION.FIELD=VALUE overrides a field.')

  def processes(self) -> None:
    """Defines the flags of `join_processes`, for a command that can run as several processes."""
    self.string('coordinator_address', None, 'HOST:PORT where process 0 listens.')
    self.integer('num_processes', None, 'Number of processes; 1 ignores the environment.')
    self.integer('process_id', None, 'Index of this process, from 0.')
    self.integer('initialization_timeout', processes.TIMEOUT, 'Seconds to wait for the other processes.', lower_bound=1)


def join_processes(args: types.SimpleNamespace) -> None:
  """Connects to the other processes, by flags or environment; call it before any other JAX function."""
  processes.initialize(
      args.coordinator_address, args.num_processes, args.process_id, args.initialization_timeout)


def parse(
    define: Callable[[Definer], None], argv: Sequence[str], required: Sequence[str] = (), resumes: bool = False
) -> types.SimpleNamespace:
  """Parses a command line without changing absl's global flags or `sys.argv`.

  Args:
    define: defines the command's flags.
    argv: the command line without the program name.
    required: names of required flags.
    resumes: whether --workdir alone uses the config.json of the run in it.

  Returns:
    The flag values by name; `config` is a `Recipe` or None, and `given` is the set of flags on the command line.

  Raises:
    ConfigError, flags.Error: a flag is unknown, missing or has a wrong value.
  """
  values = flag_values(define)
  argv = values.read_flags_from_files(list(argv), force_gnu=False)
  recipe, argv = _recipe(values, argv, resumes) if 'config' in values else (None, argv)
  words = values(['ddgan', *argv])[1:]
  if words:
    raise ConfigError(f'{words[0]!r} is not a flag; flags start with --')
  args = types.SimpleNamespace(**values.flag_values_dict())
  args.given = {name for name in values if values[name].present}
  if recipe is not None:
    args.config = recipe._replace(overrides=dict(values['config'].override_values))
  for name in required:
    if getattr(args, name) is None:
      hint = f'; the recipes are {", ".join(recipes.names())}' if name == 'config' else ''
      found = f', because {args.workdir} has no run to resume' if hint and resumes and args.workdir else ''
      raise ConfigError(f'--{name} is required{found}{hint}')
  return args


def flag_values(define: Callable[[Definer], None]) -> flags.FlagValues:
  """Defines the flags of a command, without parsing."""
  definer = Definer()
  define(definer)
  definer.integer('verbosity', -2, "Log level of the libraries: -2 errors, -1 warnings, 0 information.",
                  lower_bound=-3, upper_bound=1)
  return definer.values


def help_text(doc: str, define: Callable[[Definer], None]) -> str:
  """The help text of a command: its docstring and its flags."""
  lines = [doc.strip(), '', 'Flags:']
  values = flag_values(define)
  for name in values:
    flag = values[name]
    default = '' if flag.default is None else f' Default: {flag.default_as_str}.'
    lines.append(f'  --{"[no]" if flag.boolean else ""}{name}')
    lines += textwrap.wrap(flag.help + default, 110, initial_indent=6 * ' ', subsequent_indent=6 * ' ')
  return '\n'.join(lines)


def _recipe(values: flags.FlagValues, argv: list[str], resumes: bool) -> tuple[Recipe | None, list[str]]:
  """Loads the recipe of --config and defines a flag for each override; returns the recipe and argv without --config.

  ml_collections would read the overrides from `sys.argv`; this is the only place that passes it a command line.
  """
  spec, rest = _take(argv, 'config')
  overrides = re.findall(r'^--?(?:no)?config\.([^=\s]+)', '\n'.join(rest), re.MULTILINE)
  workdir = _take(rest, 'workdir')[0] if resumes else None
  if workdir:
    exported.check_workdir(workdir)
  if spec is not None:
    name, fields = _load(spec)
  elif workdir and (stored := resuming.stored_config(workdir)) is not None:
    name, fields = '', config_lib.to_dict(stored)
  elif overrides:
    raise ConfigError(f'--config is required with --config.{overrides[0]}; use --config=RECIPE')
  else:
    return None, argv
  known = config_lib.flatten(config_lib.Config())
  for field in overrides:
    if field not in known:
      close = difflib.get_close_matches(field, known, n=1)
      hint = f'did you mean --config.{close[0]}?' if close else f'use one of {", ".join(known)}'
      raise ConfigError(f'--config.{field}: no such field; {hint}')
  fields = ml_collections.ConfigDict(fields)
  delattr(values, 'config')
  config_flags.DEFINE_config_dict('config', fields, flag_values=values, sys_argv=rest)
  return Recipe(name, values['config'].value, {}), rest


def _load(spec: str) -> tuple[str, dict[str, Any]]:
  """The name of a recipe and its whole config, with defaults for the fields that it omits."""
  path = recipes.find(spec.partition(':')[0])
  try:
    found = recipes.load(spec)
    found = found.to_dict() if hasattr(found, 'to_dict') else dict(found)
  except UserError:
    raise
  except ValueError as error:  # a wrong argument of the recipe
    raise ConfigError(f'--config: {error}') from error
  except Exception as error:
    raise ConfigError(f'--config: {path} raised {type(error).__name__}: {error}') from error
  nested = config_lib.to_dict(config_lib.Config())
  for name, value in found.items():
    if not isinstance(nested.get(name), dict):
      nested[name] = value
    elif not isinstance(value, dict):
      raise ConfigError(f'{name} is {value!r}; use a section with fields')
    else:
      # A list, as from JSON, cannot be overridden by a flag.
      nested[name] |= {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
  return os.path.splitext(os.path.basename(path))[0], nested


def _take(argv: list[str], name: str) -> tuple[str | None, list[str]]:
  """Removes a flag from a command line; returns its last value, or None, and the rest."""
  rest, found = [], None
  words = iter(argv)
  for word in words:
    match = re.fullmatch(rf'--?{name}(?:=(.*))?', word, re.DOTALL)
    if match:
      found = match[1] if match[1] is not None else next(words, '')
    else:
      rest.append(word)
  return found, rest
