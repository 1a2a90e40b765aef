"""Reports of metrics: tables, and files in a workdir, which metrics measured under the same conditions share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from ddgan_jax.config.checks import MIN_SAMPLES
from ddgan_jax.utils import files

_NAMES = {
    'fid': 'FID', 'fid_clean': 'FID, clean-fid', 'fd_dinov2': 'FD-DINOv2', 'precision_dinov2': 'precision, DINOv2',
    'recall_dinov2': 'recall, DINOv2', 'density_dinov2': 'density, DINOv2', 'coverage_dinov2': 'coverage, DINOv2',
    **{f'authenticity_{short}': f'authenticity, {name}' for short, name in (
        ('dinov2', 'DINOv2'), ('inception', 'Inception'), ('vgg16', 'VGG16'), ('classifier', 'classifier'))},
    'mind': 'MIND', 'mind_dinov2': 'MIND, DINOv2', 'is': 'Inception score', 'kid': 'KID', 'modes': 'modes found',
    'modes_certain': 'modes found, p ≥ 0.9', 'mode_kl': 'KL of modes to uniform',
    'certain': 'fraction with p ≥ 0.9', 'fd_classifier': 'Fréchet distance, not FID',
    'in_mode': 'fraction of points in a mode', 'label_accuracy': 'label accuracy',
    'digit_accuracy': 'label accuracy per channel', 'psnr': 'PSNR, dB', 'psnr_of_mean': 'PSNR of the mean sample, dB',
    'ssim': 'SSIM', 'ssim_of_mean': 'SSIM of the mean sample', 'diversity': 'standard deviation of samples, 0 … 255',
    'consistency': 'difference to the condition, 0 … 255'}

_DISTANCES = (
    'fid', 'fid_clean', 'fd_dinov2', 'kid', 'mind', 'mind_dinov2', 'fd_classifier', 'mode_kl')  # lower is better


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


def _number(value: float) -> str:
  return f'{value:,}' if isinstance(value, int) else f'{value:.5g}'


def average(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Averages the metrics of reports that differ in their seeds.

  Returns:
    The first report, without the images' name; in each metric, `value` is the mean, `std` the sample standard
    deviation, `minimum` the least, and `values` are those of the seeds. A single report is returned unchanged.
  """
  if len(reports) == 1:
    return reports[0]
  metrics = {}
  for name, entry in reports[0]['metrics'].items():
    values = [report['metrics'][name]['value'] for report in reports]
    rest = {key: value for key, value in entry.items() if key != 'deviation'}
    metrics[name] = {**rest, 'value': float(np.mean(values)), 'std': float(np.std(values, ddof=1)),
                     'minimum': min(values), 'values': values}
  return {**reports[0], 'images': f'{reports[0]["images"]} and {len(reports) - 1} more', 'seeds': len(reports),
          'metrics': metrics}


def value_text(name: str, entry: dict[str, Any]) -> str:
  """Formats the value of one metric, with its deviation, splits and maximum, or its mean over seeds and minimum."""
  text = _number(entry['value'])
  if 'std' in entry:
    text += f' ± {entry["std"]:.2g}'
    if name in _DISTANCES:
      text += f' (minimum {_number(entry["minimum"])})'
  if 'deviation' in entry:
    text += f' ± {entry["deviation"]:.2g}'
  if 'splits' in entry:
    text += f'  (splits: {entry["splits"]})'
  if 'out_of' in entry:
    text += f' of {entry["out_of"]:,}'
  return text


def real_text(entry: dict[str, Any]) -> str:
  """Formats the value of real images, or the number of those that were compared; '' if there is neither."""
  if 'of_reference' in entry:
    return f'reference: {_number(entry["of_reference"])}, n = {entry["n_reference"]:,}'
  if 'of_held_out' in entry:
    return f'held-out images: {_number(entry["of_held_out"])}, n = {entry["n_held_out"]:,}'
  if 'n_reference' in entry:
    return f'reference: n = {entry["n_reference"]:,}'
  if 'of_classifier' in entry:
    return f'held-out real images: {entry["of_classifier"]:.5g}, n = {entry["n_classifier"]:,}'
  return ''


def title(name: str) -> str:
  """The name of a metric in tables."""
  return _NAMES.get(name, name)


def of_generator(workdir: str, step: int, generator_digest: str) -> list[dict[str, Any]]:
  """The reports of `save` in a workdir that measured these parameters, in the order of their files."""
  folder = epath.Path(workdir)
  paths = folder.glob(f'evaluation_{step:08d}*.json') if folder.is_dir() else ()
  found = [_read(path) for path in sorted(paths, key=lambda path: (len(path.name), path.name))]
  return [report for report in found if report and report.get('generator_digest') == generator_digest]


def table(report: dict[str, Any]) -> str:
  """Formats a report of `Evaluator.evaluate`: one line per value, with n and features."""
  lines = [f'{report["images"]}: n = {report["n"]:,}' + (
      f'; reference {report["reference"]}' if report['reference'] else '') + (
          f', n = {report["n_reference"]:,}' if report['n_reference'] else '') + (
              f'; mean ± standard deviation of {report["seeds"]} seeds' if report.get('seeds', 1) > 1 else '')]
  width = max(28, *(len(title(name)) for name in report['metrics']))
  for name, entry in report['metrics'].items():
    text = value_text(name, entry)
    if real := real_text(entry):
      text += f'  ({real})'
    lines.append(f'  {title(name):{width}s} {text}   [{entry["features"]}]')
  if report['biased']:
    lines.append(f'  Biased: fewer than {MIN_SAMPLES:,} images.')
  return '\n'.join(lines)
