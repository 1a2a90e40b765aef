"""Recipes: the files of `configs/`, installed with the package and found by name from any folder."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pathlib

import ml_collections

from ddgan_jax.config import schema
from ddgan_jax.config.errors import ConfigError

_PACKAGE = pathlib.Path(__file__).parent.parent
_INSTALLED = _PACKAGE / 'recipes'
_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / 'configs'  # in a clone


def names() -> list[str]:
  """Names of the installed recipes."""
  return sorted({path.stem for path in _FOLDER.glob('*.py')} - {'__init__'})


def base() -> ml_collections.ConfigDict:
  """The defaults of all fields, for a recipe to override; every field can also be set on the command line."""
  return ml_collections.ConfigDict(schema.to_dict(schema.Config()))


def load(name: str) -> ml_collections.ConfigDict:
  """The config of a recipe, for another recipe to override; an argument follows a colon: `digits`, `folder:32`."""
  name, _, argument = name.partition(':')
  path = find(name)
  spec = importlib.util.spec_from_file_location(f'ddgan_jax.recipes.{pathlib.Path(path).stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


def find(name: str) -> str:
  """The path of an installed recipe or of a .py file. Raises ConfigError if there is none."""
  if name.endswith('.py') or os.sep in name:
    if not os.path.isfile(name):
      raise ConfigError(f'--config: no such file {name!r}; the recipes are {", ".join(names())}')
    return name
  if name in names():
    return str(_FOLDER / f'{name}.py')
  close = difflib.get_close_matches(name, names(), n=1)
  hint = f'did you mean {close[0]}? The' if close else 'the'
  raise ConfigError(f'--config: no recipe {name!r}; {hint} recipes are {", ".join(names())}')
