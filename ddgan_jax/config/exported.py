"""Exported models: which --workdir names one, and the config that travels with it.

An exported model is a `.safetensors` file, a folder of `ddgan export --folder`, or `hf://OWNER/NAME`. It only has the
EMA parameters, so it is read like a workdir, but cannot be trained.
"""

from __future__ import annotations

import dataclasses
import os

from ddgan_jax.config.checks import FILE_SOURCES
from ddgan_jax.config.errors import ConfigError
from ddgan_jax.config.schema import Config

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'  # the files of a folder that are needed to sample


def is_on_hub(path: str) -> bool:
  """Whether a path is a Hub address; `pathlib` removes one of its slashes."""
  return path.startswith('hf:')


def is_file(path: str) -> bool:
  """Whether a path is a file of `ddgan export --safetensors`."""
  return path.endswith('.safetensors') and not is_on_hub(path)


def is_folder(path: str) -> bool:
  """Whether a path is the folder of an exported model, not the workdir of a run that also has such a file."""
  return os.path.isfile(os.path.join(path, WEIGHTS)) and not os.path.isdir(os.path.join(path, 'checkpoints'))


def is_exported(path: str) -> bool:
  """Whether a path is an exported model."""
  return is_on_hub(path) or is_file(path) or is_folder(path)


def check_workdir(path: str, name: str = '--workdir') -> None:
  """Raises ConfigError for an exported model, where the workdir of a run is needed."""
  if is_exported(os.path.expanduser(path)):
    raise ConfigError(f'{name} is {path!r}, an exported model with only the EMA parameters; use the workdir of a run')


def without_paths(config: Config) -> Config:
  """The config without paths of this machine.

  Of data.path and data.condition_path the last part stays; the other folders and train.init_from become empty.
  """
  data = config.data
  paths = {field: _last_part(getattr(data, field)) for field in ('path', 'condition_path')}
  if data.name not in FILE_SOURCES:
    paths['path'] = ''
  return dataclasses.replace(
      config, data=dataclasses.replace(data, data_dir='', cache_dir='', **paths),
      train=dataclasses.replace(config.train, init_from=''))


def _last_part(path: str) -> str:
  """The last part of a path; never empty or a special name, because some data sources require one."""
  last = path.replace('\\', '/').rstrip('/').rpartition('/')[2]
  return 'data' if path and last in ('', '.', '..', '~') else last
