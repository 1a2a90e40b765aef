"""Report files in a workdir; metrics measured under the same conditions share a file."""

from __future__ import annotations

import itertools
import json
from typing import Any

from etils import epath

from ddgan_jax.utils import files


def save(workdir: str, report: dict[str, Any]) -> str:
  """Merges a report into the JSON file of its step and conditions; returns the file's path.

  The conditions are all fields but `metrics`, and the features and splits of each metric; a name is ignored if a digest
  identifies the generator or reference. The file is the first of evaluation_<step>.json, evaluation_<step>_2.json, …
  that is new or has the same conditions; damaged files are skipped. A metric that is measured again replaces its entry.

  Args:
    workdir: the run's folder, local or in a bucket.
    report: the result of `Evaluator.evaluate`, with `step` and everything else that its values depend on.

  Raises:
    OSError: the file cannot be written; its old contents are unchanged.
  """
  for number in itertools.count(1):
    suffix = f'_{number}' if number > 1 else ''
    path = epath.Path(workdir) / f'evaluation_{report["step"]:08d}{suffix}.json'
    if not path.exists():
      break
    known = _read(path)
    if known is not None and _same_conditions(known, json.loads(json.dumps(report))):
      report = {**report, 'metrics': {**known['metrics'], **report['metrics']}}
      break
  with files.atomic_write(path) as file:
    file.write(json.dumps(report, indent=2) + '\n')
  return str(path)


def _same_conditions(one: dict[str, Any], other: dict[str, Any]) -> bool:
  shared = one['metrics'].keys() & other['metrics'].keys()
  return _conditions(one) == _conditions(other) and all(
      one['metrics'][name].get(field) == other['metrics'][name].get(field)
      for name in shared for field in ('features_digest', 'splits'))


def _conditions(report: dict[str, Any]) -> dict[str, Any]:
  named = {'images': 'generator_digest', 'reference': 'reference_digest'}
  return {name: value for name, value in report.items()
          if name != 'metrics' and not (name in named and report.get(named[name]))}


def _read(path: epath.Path) -> dict[str, Any] | None:
  """Reads a report; None for another file."""
  try:
    found = json.loads(path.read_text())
  except ValueError:
    return None
  return found if isinstance(found, dict) and isinstance(found.get('metrics'), dict) else None
