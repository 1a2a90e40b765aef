"""Reads and writes the folder of an exported model: model.safetensors and config.json.

The same files are in a repository of the Hub. They may be from strangers: nothing in them is executed, every array is
compared with the config, and paths in the config are removed, so that they select no file of this machine.
"""

from __future__ import annotations

import os
from typing import Any

from ddgan_jax import config as config_lib
from ddgan_jax.config import Config, ConfigError, UserError, exported
from ddgan_jax.config.exported import CONFIG, WEIGHTS
from ddgan_jax.interop import safetensors_file
from ddgan_jax.utils import files

_MAX_CONFIG = 2**20  # bytes


def write(folder: str, params: Any, config: Config, step: int) -> None:
  """Writes EMA parameters and the config, without paths of this machine, to an existing folder.

  Raises UserError if a file cannot be written.
  """
  config = exported.without_paths(config)
  safetensors_file.write(os.path.join(folder, WEIGHTS), params, config, step)
  with files.atomic_write(os.path.join(folder, CONFIG)) as file:
    file.write(config_lib.to_json(config))


def read(folder: str, name: str) -> tuple[Any, Config, int]:
  """Reads (nested dict of numpy arrays, config without paths, step); `name` is that of the folder in messages.

  Raises UserError for a missing or damaged file, arrays that do not fit the config, or files of different exports.
  """
  config = read_config(folder, name)
  params, other, step = safetensors_file.read(os.path.join(folder, WEIGHTS), os.path.join(name, WEIGHTS))
  if config != other:
    raise UserError(f'{name}: {CONFIG} differs from the config in {WEIGHTS}; use both files of one ddgan export')
  return params, config, step


def read_config(folder: str, name: str) -> Config:
  """Reads the config without paths. Raises UserError if it is missing, damaged or of another version."""
  path, name = os.path.join(folder, CONFIG), os.path.join(name, CONFIG)
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read(_MAX_CONFIG + 1)
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{name} cannot be read ({getattr(error, "strerror", None) or error}); use all files of ddgan '
                    'export') from error
  if len(text) > _MAX_CONFIG:
    raise UserError(f'{name} is larger than {_MAX_CONFIG:,} bytes; use a config.json of ddgan export')
  try:
    return exported.without_paths(config_lib.from_json(text, name))
  except ConfigError as error:
    raise ConfigError(f'{error}; use the version of ddgan_jax that wrote it') from error
