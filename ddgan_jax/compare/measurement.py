"""Measures and times the samplers of `compare`, and writes its files."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import sampling, train_state
from ddgan_jax.cli import image_output
from ddgan_jax.compare import comparison
from ddgan_jax.compare.comparison import METHODS
from ddgan_jax.config import Config
from ddgan_jax.metrics import image_sets
from ddgan_jax.metrics import reports as reports_lib
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop
from ddgan_jax.utils import files

_NUM_TIMED = 100  # images, as in the paper's table
_NUM_POINTS = 2_000  # in a scatter plot
_REPORT_VERSION = 3  # increased when the same samples would give another report
_MINUTES = 'minutes.json'  # in a run's folder
_MIN_SECONDS = 1.0  # per sampler and round, at least one call


def run_folder(name: str, index: int) -> str:
  """The folder of the run of a method (a key of `METHODS`) with the config's seed + `index`."""
  return f'{name}_seed_{index}' if index else name


def are_finished(configs: Mapping[str, Config], workdir: str, index: int) -> bool:
  """Whether the runs of all methods with this seed are finished."""
  latest = {name: Checkpoints(os.path.join(workdir, run_folder(name, index))).latest_step() for name in configs}
  return all((latest[name] or 0) >= config.train.num_steps for name, config in configs.items())


def train(config: Config, folder: str) -> bool:
  """Trains or resumes a run, and adds the minutes to those of earlier calls in minutes.json; False if stopped."""
  before, begun = Checkpoints(folder).latest_step(), time.perf_counter()
  path = os.path.join(folder, _MINUTES)
  try:
    return loop.train_and_evaluate(config, folder)
  finally:
    known = 0.0 if before is None else _read_json(path)  # None: trained before minutes were recorded
    if known is not None and Checkpoints(folder).latest_step() != before:
      with contextlib.suppress(OSError), files.atomic_write(path) as file:
        file.write(json.dumps(known + (time.perf_counter() - begun) / 60))


def measure(
    evaluate: Callable[[Any], dict[str, Any]], base: Config, names: list[str], workdir: str, mesh: Any, checksum: str,
    num_seeds: int = 1
) -> list[dict[str, Any]]:
  """Returns one row per sampler: the run of its first seed, title, evaluations, and report, averaged over the seeds.

  The report of each run is cached in its folder.

  Args:
    evaluate: maps images to a report, with the data as reference and the metrics of `base.eval`.
    base: the recipe.
    names: keys of `METHODS`.
    workdir: folder of all runs.
    mesh: the devices.
    checksum: of the data; a cached report on other data is ignored.
    num_seeds: runs per method.
  """
  rows = []
  for name in names:
    for num_timesteps in METHODS[name].num_timesteps:
      measured = [_measure_run(evaluate, base, name, run_folder(name, i), num_timesteps, workdir, mesh, checksum)
                  for i in range(num_seeds)]
      runs, reports = zip(*measured, strict=True)
      rows.append({
          **reports[0], 'name': name, 'title': METHODS[name].title, 'fields': _fields(name, runs[0].config),
          'evaluations': runs[0].schedule.num_timesteps, 'run': runs[0], 'num_timesteps': num_timesteps,
          'minutes': _mean_minutes(os.path.join(workdir, run_folder(name, i)) for i in range(num_seeds)),
          'seeds': num_seeds,
          'metrics': reports_lib.average(reports)['metrics']})
  return rows


def _fields(name: str, config: Config) -> dict[str, Any]:
  """The values of the fields that define a method."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in METHODS[name].fields}


def _mean_minutes(folders: Iterable[str]) -> float | None:
  """The mean training time; None if one is unknown."""
  minutes = [_read_json(os.path.join(folder, _MINUTES)) for folder in folders]
  return None if None in minutes else statistics.fmean(minutes)


def _measure_run(
    evaluate: Callable[[Any], dict[str, Any]], base: Config, name: str, folder: str, num_timesteps: int | None,
    workdir: str, mesh: Any, checksum: str
) -> tuple[ddgan_jax.Run, dict[str, Any]]:
  """A run, and its report from the cache if it was measured in the same way."""
  num = base.eval.num
  run = ddgan_jax.load(os.path.join(workdir, folder), None, num_timesteps, sharding.replicated(mesh))
  evaluations = run.schedule.num_timesteps
  path = os.path.join(workdir, folder, f'compared_{evaluations}_steps_{num}_samples.json')
  report = _read_json(path)
  conditions = [_REPORT_VERSION, run.step, *base.eval.metrics, checksum]
  if report is None or report.get('asked') != conditions:
    print(f'{METHODS[name].title}: drawing {num:,} samples with {evaluations} evaluations.', flush=True)
    images = image_sets.generated_images(run.config, 0, mesh, num_timesteps)
    report = evaluate(images(run.params, name)) | {'asked': conditions}
    try:
      with files.atomic_write(path) as file:
        file.write(json.dumps(report, indent=2))
    except OSError as error:
      print(f'{path} cannot be written ({error.strerror or error}); the next call measures again.', flush=True)
  return run, report


def _read_json(path: str) -> Any:
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError):
    return None


def time_samplers(rows: list[dict[str, Any]], repeats: int) -> None:
  """Adds `samples` to each row, and `seconds`, the median time of a compiled call for 100 samples, and its range.

  The samplers take turns, so that other load on the machine affects all of them, and each is timed equally long.
  """
  def make(config, num_timesteps):
    def sample(params, first):
      generator_fn, schedule = train_state.make_sampler(
          config, params, num_timesteps, labels.timing_label(config.generator))
      return sampling.sample_in_batches(
          0, first + np.arange(_NUM_TIMED), generator_fn, schedule, config.image_shape, config.generator.nz)

    return compilation.jit(sample)

  samplers = [make(row['run'].config, row['num_timesteps']) for row in rows]
  times: list[list[float]] = [[] for _ in rows]
  for i, sample in enumerate(samplers):  # compiles
    rows[i]['samples'] = jax.block_until_ready(sample(rows[i]['run'].params, 0))
  for i, sample in repeats * list(enumerate(samplers)):
    left = _MIN_SECONDS
    while left > 0:
      begun = time.perf_counter()
      jax.block_until_ready(sample(rows[i]['run'].params, 0))
      times[i].append(time.perf_counter() - begun)
      left -= times[i][-1]
  for row, measured in zip(rows, times):
    row.update(seconds=statistics.median(measured), fastest=min(measured), slowest=max(measured))
    generator, is_points = row['run'].config.generator, row['run'].config.data.is_points
    num = _NUM_POINTS if is_points else _NUM_TIMED
    label = np.asarray(labels.draw(0, np.arange(num), generator)) if labels.is_required(generator) else None
    if is_points or label is not None:  # the timed samples are too few, or have one label
      row['samples'] = image_output.generate(row['run'], num, seed=0, batch_size=num, label=label)


def write(rows: list[dict[str, Any]], workdir: str, base: Config, num_steps: int) -> None:
  """Prints the table, and writes it as table.md, comparison.json, trilemma.png and samples.png."""
  table = comparison.table(rows, base, num_steps)
  print(table)
  with open(os.path.join(workdir, 'table.md'), 'w', encoding='utf-8') as file:
    file.write(table + '\n')
  with open(os.path.join(workdir, 'comparison.json'), 'w', encoding='utf-8') as file:
    plain = [{key: value for key, value in row.items() if key not in ('run', 'samples')} for row in rows]
    json.dump(plain, file, indent=2)
  comparison.plot_quality(rows, os.path.join(workdir, 'trilemma.png'))
  comparison.plot_samples(rows, os.path.join(workdir, 'samples.png'))
  print(f'Wrote table.md, comparison.json, trilemma.png and samples.png in {workdir}.')
