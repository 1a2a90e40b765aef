"""Recipes: the files of `configs/`, which are also installed with the package, by name from any folder."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pathlib
from typing import Any

from ddgan_jax.config.errors import ConfigError, UserError
from ddgan_jax.config.schema import Config, to_dict

_PACKAGE = pathlib.Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / 'recipes', _PACKAGE.parent / 'configs')  # as installed, and in a clone


def names() -> list[str]:
  """The installed recipes."""
  return sorted({path.stem for folder in _FOLDERS for path in folder.glob('*.py')} - {'__init__'})


def find(name: str) -> str:
  """The path of a recipe's file.

  Args:
    name: of an installed recipe, or the path of a file that ends in .py.

  Raises:
    ConfigError: there is none; lists the recipes.
  """
  if name.endswith('.py') or os.sep in name:
    if not os.path.isfile(name):
      raise ConfigError(f'--config: no such file {name!r}; the recipes are {", ".join(names())}')
    return name
  for folder in _FOLDERS:
    if (folder / f'{name}.py').is_file():
      return str(folder / f'{name}.py')
  close = difflib.get_close_matches(name, names(), n=1)
  hint = f'did you mean {close[0]}? ' if close else ''
  raise ConfigError(f'--config: no recipe {name!r}; {hint}The recipes are {", ".join(names())}')


def load(spec: str) -> tuple[str, dict[str, Any]]:
  """Runs a recipe.

  Args:
    spec: what `find` takes; after a colon perhaps the argument of the recipe, as in `folder:32`.

  Returns:
    The recipe's name, and its config as a nested dict, in which fields that it leaves out have their defaults.

  Raises:
    ConfigError: there is no such recipe, or it refuses the argument, or it cannot be run.
  """
  name, *argument = spec.split(':', 1)
  path = find(name)
  try:
    module_spec = importlib.util.spec_from_file_location('recipe', path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    found = module.get_config(*argument)
    found = found.to_dict() if hasattr(found, 'to_dict') else dict(found)
  except UserError:
    raise
  except ValueError as error:
    raise ConfigError(f'--config: {error}') from error
  except Exception as error:
    raise ConfigError(f'--config: {path} cannot be run ({type(error).__name__}: {error})') from error
  nested = to_dict(Config())
  for name, value in found.items():
    if not isinstance(nested.get(name), dict):
      nested[name] = value
    elif not isinstance(value, dict):
      raise ConfigError(f'{name}: found {value!r}, must be a section with fields')
    else:
      # Lists, as of JSON, would not take overrides.
      nested[name] |= {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
  return pathlib.Path(path).stem, nested
