"""Recipes: the files of `configs/`, which are also installed with the package, by name from any folder."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pathlib

import ml_collections

from ddgan_jax.config.errors import ConfigError

_PACKAGE = pathlib.Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / 'recipes', _PACKAGE.parent / 'configs')  # as installed, and in a clone


def names() -> list[str]:
  """The installed recipes."""
  return sorted({path.stem for folder in _FOLDERS for path in folder.glob('*.py')} - {'__init__'})


def load(name: str) -> ml_collections.ConfigDict:
  """The config of a recipe, for another one to override.

  Args:
    name: as `find` takes it, and perhaps the recipe's argument after a colon: `digits`, `folder:32`.

  Raises:
    ConfigError: there is no such recipe.
  """
  name, _, argument = name.partition(':')
  path = find(name)
  spec = importlib.util.spec_from_file_location(f'ddgan_jax.recipes.{pathlib.Path(path).stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


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
