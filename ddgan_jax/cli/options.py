"""The flags of a command, parsed into a namespace; the recipe of `--config` and its overrides; flags of processes."""

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
from ddgan_jax.config import ConfigError, UserError, recipes, resuming
from ddgan_jax.parallel import processes

HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')


class Recipe(NamedTuple):
  """What --config names.

  Attributes:
    name: of the recipe's file, without folder and ending; '' for a run's own config.
    fields: the whole config, with the overrides of the command line; `config.from_config_dict` checks it.
    overrides: the fields that the command line sets, such as {'train.num_steps': 100}.
  """

  name: str
  fields: ml_collections.ConfigDict
  overrides: dict[str, Any]


class Definer:
  """Defines the flags of one command, by absl's functions: `define.string(name, default, help)`, and so on."""

  def __init__(self):
    self.values = flags.FlagValues()
    self.string, self.integer, self.float, self.boolean, self.enum, self.list = (
        functools.partial(function, flag_values=self.values) for function in (
            flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_boolean, flags.DEFINE_enum,
            flags.DEFINE_list))

  def config(self, purpose: str = 'A recipe') -> None:
    """Defines --config; `parse` puts a `Recipe` in its place."""
    self.string('config', None, f'{purpose}: the name of an installed one (digits), the path of a .py file, or either '
                'with an argument (folder:32). --config.SECTION.FIELD=VALUE overrides a field.')

  def processes(self) -> None:
    """Defines the flags of `join_processes`, for a command that may run as several processes."""
    self.string('coordinator_address', None, 'HOST:PORT where process 0 is to listen.')
    self.integer('num_processes', None, 'How many processes; 1 joins none.')
    self.integer('process_id', None, 'Which of them this is, from 0.')
    self.integer('initialization_timeout', processes.TIMEOUT, 'Seconds to wait for the other processes.', lower_bound=1)


def join_processes(args: types.SimpleNamespace) -> None:
  """Joins the other processes of this run, as the flags and the environment say; before any other call of JAX."""
  processes.initialize(
      args.coordinator_address, args.num_processes, args.process_id, args.initialization_timeout)


def parse(
    define: Callable[[Definer], None], argv: Sequence[str], required: Sequence[str] = (), resumes: bool = False
) -> types.SimpleNamespace:
  """Parses a command line with flags of its own; leaves absl's global flags and `sys.argv` alone.

  Args:
    define: defines the command's flags.
    argv: the command line without the program.
    required: flags that must be given.
    resumes: whether --workdir alone means the config.json of the run in it.

  Returns:
    The flags' values by name; `config` is a `Recipe` or None, and `given` the set of flags that were given.

  Raises:
    ConfigError, flags.Error: one sentence.
  """
  values = flag_values(define)
  argv = values.read_flags_from_files(list(argv), force_gnu=False)
  recipe, argv = _recipe(values, argv, resumes) if 'config' in values else (None, argv)
  words = values(['ddgan', *argv])[1:]
  if words:
    raise ConfigError(f'{words[0]!r} is not understood: flags begin with --')
  args = types.SimpleNamespace(**values.flag_values_dict())
  args.given = {name for name in values if values[name].present}
  if recipe is not None:
    args.config = recipe._replace(overrides=dict(values['config'].override_values))
  for name in required:
    if getattr(args, name) is None:
      hint = f'; the recipes are {", ".join(recipes.names())}' if name == 'config' else ''
      found = f': {args.workdir} holds no run to resume' if hint and resumes and args.workdir else ''
      raise ConfigError(f'--{name} is required{found}{hint}')
  return args


def flag_values(define: Callable[[Definer], None]) -> flags.FlagValues:
  """The flags of a command, not yet parsed."""
  definer = Definer()
  define(definer)
  definer.integer('verbosity', -2, "The libraries' log level: -2 errors, -1 warnings, 0 information.",
                  lower_bound=-3, upper_bound=1)
  return definer.values


def help_text(doc: str, define: Callable[[Definer], None]) -> str:
  """The docstring of a command and its flags."""
  lines = [doc.strip(), '', 'Flags:']
  values = flag_values(define)
  for name in values:
    flag = values[name]
    default = '' if flag.default is None else f' Default: {flag.default_as_str}.'
    lines.append(f'  --{"[no]" if flag.boolean else ""}{name}')
    lines += textwrap.wrap(flag.help + default, 110, initial_indent=6 * ' ', subsequent_indent=6 * ' ')
  return '\n'.join(lines)


def _recipe(values: flags.FlagValues, argv: list[str], resumes: bool) -> tuple[Recipe | None, list[str]]:
  """Loads what --config names, and defines a flag for each override; returns argv without --config.

  ml_collections reads the overrides from `sys.argv` unless it is given a command line, which happens only here.
  """
  spec, rest = _take(argv, 'config')
  overrides = re.findall(r'^--?(?:no)?config\.([^=\s]+)', '\n'.join(rest), re.MULTILINE)
  workdir = _take(rest, 'workdir')[0] if resumes else None
  if spec is not None:
    name, fields = _load(spec)
  elif workdir and (stored := resuming.stored_config(workdir)) is not None:
    name, fields = '', config_lib.to_dict(stored)
  elif overrides:
    raise ConfigError(f'--config is required, since --config.{overrides[0]} overrides one of its fields')
  else:
    return None, argv
  known = config_lib.flatten(config_lib.Config())
  for field in overrides:
    if field not in known:
      close = difflib.get_close_matches(field, known, n=1)
      hint = f'did you mean --config.{close[0]}?' if close else f'the fields are {", ".join(known)}'
      raise ConfigError(f'--config.{field}: no such field; {hint}')
  fields = ml_collections.ConfigDict(fields)
  delattr(values, 'config')
  config_flags.DEFINE_config_dict('config', fields, flag_values=values, sys_argv=rest)
  return Recipe(name, values['config'].value, {}), rest


def _load(spec: str) -> tuple[str, dict[str, Any]]:
  """The name of a recipe and its whole config, in which fields that it leaves out have their defaults."""
  path = recipes.find(spec.partition(':')[0])
  try:
    found = recipes.load(spec)
    found = found.to_dict() if hasattr(found, 'to_dict') else dict(found)
  except UserError:
    raise
  except ValueError as error:  # the recipe refuses its argument
    raise ConfigError(f'--config: {error}') from error
  except Exception as error:
    raise ConfigError(f'--config: {path} cannot be run ({type(error).__name__}: {error})') from error
  nested = config_lib.to_dict(config_lib.Config())
  for name, value in found.items():
    if not isinstance(nested.get(name), dict):
      nested[name] = value
    elif not isinstance(value, dict):
      raise ConfigError(f'{name}: found {value!r}, must be a section with fields')
    else:
      # Lists, as of JSON, would not take overrides.
      nested[name] |= {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
  return os.path.splitext(os.path.basename(path))[0], nested


def _take(argv: list[str], name: str) -> tuple[str | None, list[str]]:
  """The last value of a flag on a command line, None without it, and the line without the flag."""
  rest, found = [], None
  words = iter(argv)
  for word in words:
    match = re.fullmatch(rf'--?{name}(?:=(.*))?', word, re.DOTALL)
    if match:
      found = match[1] if match[1] is not None else next(words, '')
    else:
      rest.append(word)
  return found, rest
