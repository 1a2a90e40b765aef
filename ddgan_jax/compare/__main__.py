"""The trilemma: `python -m ddgan_jax.compare --config configs/stacked_digits.py [--workdir DIR] [--quick]`.

Trains, on the data of one config, with its network and its number of steps: a one-shot GAN (T = 1), Gaussian diffusion
(L2 on the noise, T = 1000, sampled in 1,000 steps and in 4), Denoising Diffusion GANs with T = 2, 4, 8, and one with
T = 4 and no latent. Writes a table and a figure of quality, coverage, sampling time and network evaluations.

Every training is a run of its own in the workdir; the same command goes on where it was stopped. The EMA reaches back
a tenth of the steps at most, or a short budget's would still hold the first weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app
from ddgan_jax.compare import comparison
from ddgan_jax.compare.comparison import METHODS
from ddgan_jax.config import Config, checks

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Data, network and budget.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where all goes; by default runs/compare_<name of the config file>, with --quick and _quick.')
_METHODS = flags.DEFINE_list('methods', None, 'Some of them; by default all, with --quick three.')
_NUM = flags.DEFINE_integer('num', 10_000, 'Samples that are measured of each.', lower_bound=2)
_QUICK = flags.DEFINE_boolean(
    'quick', False, 'At most 3,000 steps and 1,000 samples each, by default of gan, ddpm, ddgan_4: a look, no result.')
_FORCE = flags.DEFINE_boolean('force', False, 'Measure fewer than 10,000 samples; marked as biased.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Turns in which each method is timed, all in turn.', lower_bound=1)

_QUICK_STEPS, _QUICK_NUM, _QUICK_METHODS = 3000, 1000, ['gan', 'ddpm', 'ddgan_4']
_TIMED = 100  # images, as in the paper's table
_POINTS = 2_000  # of a scatter picture
_REPORTS = 3  # raised when the same samples would give another report
_TURN = 1.0  # seconds of a turn, or one call if that takes longer


def main(argv: list[str]) -> None:
  del argv
  base = config_lib.from_config_dict(_CONFIG.value)
  names = comparison.choose(_METHODS.value or (_QUICK_METHODS if _QUICK.value else None))
  comparison.check_metrics(base)
  num = min(_NUM.value, _QUICK_NUM) if _QUICK.value else _NUM.value
  checks.check_enough('--num', num, _FORCE.value or _QUICK.value, '--force')
  num_steps = min(base.train.num_steps, _QUICK_STEPS) if _QUICK.value else base.train.num_steps
  configs = {name: comparison.config_of(base, METHODS[name], num_steps) for name in names}
  base = dataclasses.replace(base, eval=dataclasses.replace(base.eval, num=num, force=True))
  workdir = _WORKDIR.value
  is_default = workdir is None
  if is_default:
    file = config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]
    # A quick run is not what a long one begins with: its learning rates have ended.
    quick = '_quick' if _QUICK.value else ''
    workdir = os.path.join('runs', f'compare_{os.path.splitext(os.path.basename(file))[0]}{quick}')

  from ddgan_jax.data import sources
  from ddgan_jax.metrics import evaluator
  from ddgan_jax.parallel import compilation, sharding
  from ddgan_jax.runs import workdir as workdir_lib
  from ddgan_jax.runs.checkpoints import Checkpoints
  from ddgan_jax.training import loop

  compilation.use_persistent_cache()
  mesh = sharding.make_mesh()
  source = sources.load_source(base.data)
  evaluate = evaluator.against_data(base, source, mesh)  # what is missing is missed now
  for name, config in configs.items():
    decay = config.optim.ema_decay
    print(f'--- {METHODS[name].title}, T = {config.diffusion.num_timesteps}: {num_steps:,} steps'
          f'{f", ema_decay {decay:.4g} for so few" if decay != base.optim.ema_decay else ""}', flush=True)
    folder = os.path.join(workdir, name)
    if is_default and Checkpoints(folder).latest_step() is not None:
      workdir_lib.check_data(folder, config, source, workdir)
    if not loop.train_and_evaluate(config, folder):
      print('Stopped; the same command goes on from there.', flush=True)
      return
  rows = measure(evaluate, base, names, workdir, mesh, source.checksum)
  time_samplers(rows, _REPEATS.value)
  write(rows, workdir, base, num_steps)


def measure(
    evaluate: Callable[[Any], dict[str, Any]], base: Config, names: list[str], workdir: str, mesh: Any, checksum: str
) -> list[dict[str, Any]]:
  """One row per sampler: its run, title, evaluations, and its report, which is kept beside the run.

  Args:
    evaluate: images → report, with the data as reference.
    base: the config whose `eval` says what is measured.
    names: of `METHODS`.
    workdir: the comparison's.
    mesh: the devices that sample.
    checksum: of the data; a report on other data is not used again.
  """
  import ddgan_jax
  from ddgan_jax.metrics import image_sets
  from ddgan_jax.parallel import sharding
  from ddgan_jax.utils import files

  num = base.eval.num
  rows = []
  for name in names:
    for num_timesteps in METHODS[name].num_timesteps:
      run = ddgan_jax.load(os.path.join(workdir, name), None, num_timesteps, sharding.replicated(mesh))
      evaluations = run.schedule.num_timesteps
      path = os.path.join(workdir, name, f'compared_{evaluations}_steps_{num}_samples.json')
      report = _kept(path)
      asked = [_REPORTS, run.step, *base.eval.metrics, checksum]
      if report is None or report.get('asked') != asked:
        print(f'Sampling {num:,} of {METHODS[name].title} in {evaluations} evaluations.', flush=True)
        images = image_sets.of_generator(run.config, 0, mesh, num_timesteps)
        report = evaluate(images(run.params, name)) | {'asked': asked}
        try:
          with files.atomic_write(path) as file:
            file.write(json.dumps(report, indent=2))
        except OSError as error:
          print(f'{path}: cannot be written ({error.strerror or error}); measured again next time.', flush=True)
      rows.append({
          'name': name, 'title': METHODS[name].title, 'evaluations': evaluations, 'run': run,
          'num_timesteps': num_timesteps, **report})
  return rows


def _kept(path: str) -> dict[str, Any] | None:
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError):
    return None


def time_samplers(rows: list[dict[str, Any]], repeats: int) -> None:
  """Puts into each row `samples`, and `seconds`, the median of the compiled call that makes a hundred; in turns.

  So a machine that is busy at times is so for all of them, and short calls are timed as long as others.
  """
  import jax
  import numpy as np

  from ddgan_jax import sampling, train_state
  from ddgan_jax.cli import image_output
  from ddgan_jax.models import labels
  from ddgan_jax.parallel import compilation

  def make(config, num_timesteps):
    def sample(params, first):
      generator_fn, schedule = train_state.make_sampler(
          config, params, num_timesteps, labels.for_timing(config.generator))
      return sampling.sample_many(
          0, first + np.arange(_TIMED), generator_fn, schedule, config.image_shape, config.generator.nz)

    return compilation.jit(sample)

  samplers = [make(row['run'].config, row['num_timesteps']) for row in rows]
  times: list[list[float]] = [[] for _ in rows]
  for i, sample in enumerate(samplers):  # compiles
    rows[i]['samples'] = jax.block_until_ready(sample(rows[i]['run'].params, 0))
  for i, sample in repeats * list(enumerate(samplers)):
    left = _TURN
    while left > 0:
      begun = time.perf_counter()
      jax.block_until_ready(sample(rows[i]['run'].params, 0))
      times[i].append(time.perf_counter() - begun)
      left -= times[i][-1]
  for row, measured in zip(rows, times):
    row['seconds'] = statistics.median(measured)
    generator, is_points = row['run'].config.generator, row['run'].config.data.is_points
    num = _POINTS if is_points else _TIMED
    label = np.asarray(labels.draw(0, np.arange(num), generator)) if labels.required(generator) else None
    if is_points or label is not None:  # whose timed samples are too few, or all of one label
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
  comparison.draw(rows, os.path.join(workdir, 'trilemma.png'))
  comparison.draw_samples(rows, os.path.join(workdir, 'samples.png'))
  print(f'In {workdir}: table.md, comparison.json, trilemma.png, samples.png')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
