"""Reports beside a run: what was measured under the same conditions shares a file."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from typing import Any

from etils import epath


def keep(workdir: str, report: dict[str, Any]) -> str:
  """Adds a report to the JSON of its step and conditions in a run's folder; returns the file's path.

  The conditions are everything but `metrics`. The file is evaluation_<step>.json or, if that has other conditions or is
  damaged, the first of evaluation_<step>_2.json, …_3.json, … that is new or has the same conditions. A metric that is
  measured again replaces its entry; no other file changes.

  Args:
    workdir: the run's folder; may be in a bucket.
    report: as `Evaluator.evaluate` returns it, with `step` and everything else that its numbers depend on.

  Raises:
    OSError: the file cannot be written; what was there before is unchanged.
  """
  for number in itertools.count(1):
    suffix = f'_{number}' if number > 1 else ''
    path = epath.Path(workdir) / f'evaluation_{report["step"]:08d}{suffix}.json'
    if not path.exists():
      break
    known = _read(path)
    if known is not None and _conditions(known) == _conditions(json.loads(json.dumps(report))):
      report = {**report, 'metrics': {**known['metrics'], **report['metrics']}}
      break
  _write_whole(path, json.dumps(report, indent=2) + '\n')
  return str(path)


def _conditions(report: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in report.items() if name != 'metrics'}


def _read(path: epath.Path) -> dict[str, Any] | None:
  """A report, or None if the file is something else."""
  try:
    found = json.loads(path.read_text())
  except ValueError:
    return None
  return found if isinstance(found, dict) and isinstance(found.get('metrics'), dict) else None


def _write_whole(path: epath.Path, text: str) -> None:
  """Writes under another name first, so that a failure leaves the file as it was."""
  partial = path.parent / f'.{path.name}.{os.getpid()}.partial'
  try:
    partial.write_text(text)
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise
