"""Which fields a resumed run takes from its stored config, and which from the recipe."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ddgan_jax.config.schema import Config, flatten, from_json

# Fields that may change when a run resumes (a dot ends a whole section): they change a training step by rounding at
# most, except train.num_steps, which stretches the cosine and is announced.
CHANGEABLE_FIELDS = (
    'data.path', 'data.condition_path', 'data.data_dir', 'data.cache_dir', 'data.cache', 'data.skip_bad',
    'data.num_workers', 'train.', 'eval.', 'parallel.fsdp', 'parallel.accumulation', 'parallel.remat')
_MACHINE_FIELD = 'parallel.fsdp'  # depends on the number of devices, so the recipe's value is used


def stored_config(workdir: str) -> Config | None:
  """The config of the run in a workdir, or None if there is no run. Raises ConfigError for a bad config.json."""
  from etils import epath

  file = epath.Path(os.path.expanduser(workdir)) / 'config.json'
  return from_json(file.read_text(), str(file)) if file.exists() else None


def has_checkpoint(workdir: str) -> bool:
  """Whether the run in a workdir has a checkpoint."""
  from etils import epath

  folder = epath.Path(os.path.expanduser(workdir)) / 'checkpoints'
  return folder.exists() and any(path.name.isdecimal() for path in folder.iterdir())


def merge_stored(
    fields: Mapping[str, Any], overrides: Collection[str], stored: Config) -> tuple[dict[str, Any], dict[str, tuple]]:
  """Merges a recipe with a stored config: changeable fields keep the run's value unless the command line sets them.

  Other fields keep the recipe's value; `runs.workdir.check_workdir` raises if one differs from the run's.

  Args:
    fields: the recipe's config, nested.
    overrides: fields set on the command line, such as 'train.num_steps'.
    stored: the run's config.

  Returns:
    The nested config, and field → (the run's value, the recipe's) for each field that keeps the run's.
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
