"""What a run that is resumed keeps of the config that it was started with."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ddgan_jax.config.schema import Config, flatten, from_json

# Fields that may differ between a run and the config that continues it, whole sections with a dot: they do not change a
# step's arithmetic beyond rounding, except num_steps, which stretches the cosine and is announced.
CHANGEABLE_FIELDS = (
    'data.path', 'data.data_dir', 'data.cache_dir', 'data.cache', 'data.skip_bad', 'data.num_workers', 'train.',
    'eval.', 'parallel.fsdp', 'parallel.accumulation', 'parallel.remat')
_MACHINE_FIELD = 'parallel.fsdp'  # fits the number of devices, so the recipe's value counts


def stored_config(workdir: str) -> Config | None:
  """The config of the run in a workdir, None if there is none. Raises ConfigError for a config.json of another kind."""
  from etils import epath

  file = epath.Path(os.path.expanduser(workdir)) / 'config.json'
  return from_json(file.read_text(), str(file)) if file.exists() else None


def has_checkpoint(workdir: str) -> bool:
  """Whether the run in a workdir has saved a step."""
  from etils import epath

  folder = epath.Path(os.path.expanduser(workdir)) / 'checkpoints'
  return folder.exists() and any(path.name.isdecimal() for path in folder.iterdir())


def merge_stored(
    fields: Mapping[str, Any], overrides: Collection[str], stored: Config) -> tuple[dict[str, Any], dict[str, tuple]]:
  """A recipe as a run resumes with it: fields that may change keep the run's value unless the command line sets them.

  Fields that may not change are left as the recipe has them, and `runs.workdir.check_workdir` refuses any that differ.

  Args:
    fields: the recipe's config, nested.
    overrides: fields that the command line sets, such as 'train.num_steps'.
    stored: the run's config.

  Returns:
    The nested config, and of each field that keeps the run's value: that value, and the recipe's.
  """
  nested = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
  kept = {}
  for name, value in flatten(stored).items():
    section, _, field = name.partition('.')
    is_fixed = name in (*overrides, _MACHINE_FIELD) or not name.startswith(CHANGEABLE_FIELDS)
    if is_fixed or nested[section][field] == value:
      continue
    kept[name] = value, nested[section][field]
    nested[section][field] = value
  return nested, kept
