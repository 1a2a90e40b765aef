"""Compare methods (the trilemma): `ddgan compare --config stacked_digits [--workdir DIR] [--seeds 3] [--quick]`.

Trains, with the data, network and number of steps of one config: a one-shot GAN (T = 1), Gaussian diffusion (L2 on the
noise, T = 1000, sampled in 1,000 steps and in 4), Denoising Diffusion GANs with T = 2, 4, 8, with T = 4 without the
latent z and in Haar space, and their successors with T = 4: relativistic, RDUOT, and UFOGen and SIDDM, which are also
sampled in 1 and 2 steps. Writes a table and a figure of quality, coverage, sampling time and network evaluations.

Each training is a separate run in the workdir; the same command resumes. `--seeds N` trains each method with N seeds,
all methods with the first seed first, and writes the table after each seed. The EMA averages over at most a tenth of
the steps, because in a short run it would otherwise still contain the initial weights.
"""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Sequence

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError, UserError, checks, exported

_QUICK_STEPS, _QUICK_NUM, _QUICK_METHODS = 3000, 1000, ['gan', 'ddpm', 'ddgan_4']


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_compare, _define_flags, __doc__, argv, required=('config',))


def _define_flags(define: options.Definer) -> None:
  define.config('A recipe of data, network and budget')
  define.string(
      'workdir', None, 'Output folder; default runs/compare_<recipe>, with --quick runs/compare_<recipe>_quick.')
  define.list('methods', None, 'Methods to compare; default all, with --quick three.')
  define.integer('num', 10_000, 'Number of samples per method.', lower_bound=2)
  define.integer('seeds', 1, 'Runs per method; the seeds are those of the config, plus 0, 1, …', lower_bound=1)
  define.boolean('quick', False, 'Smoke test: at most 3,000 steps and 1,000 samples per method; by default gan, ddpm '
                 'and ddgan_4.')
  define.boolean('force', False, 'Allow fewer than 10,000 samples; the table marks them as biased.')
  define.integer('repeats', 3, 'Rounds of timing; each round times every method.', lower_bound=1)


def _compare(args: types.SimpleNamespace) -> None:
  base = config_lib.from_config_dict(args.config.fields)
  if base.data.condition_shape:
    raise ConfigError(f"data.condition is {base.data.condition!r}; use 'none', because compare has no conditions")
  if base.data.value_range:
    raise ConfigError(f'data.value_range is {base.data.value_range}; use images of 8 bits, for which there are metrics')
  # After the config is checked, because these take seconds to import.
  from ddgan_jax.compare import comparison, measurement
  from ddgan_jax.data import sources
  from ddgan_jax.metrics import evaluator
  from ddgan_jax.parallel import sharding
  from ddgan_jax.runs import workdir as workdir_lib
  from ddgan_jax.runs.checkpoints import Checkpoints

  names = comparison.select_methods(args.methods or (_QUICK_METHODS if args.quick else None))
  comparison.check_metrics(base)
  num = min(args.num, _QUICK_NUM) if args.quick else args.num
  checks.check_num_samples('--num', num, args.force or args.quick, '--force')
  num_steps = min(base.train.num_steps, _QUICK_STEPS) if args.quick else base.train.num_steps
  configs = _configs(names, base, num_steps, explicit=bool(args.methods))
  base = dataclasses.replace(base, eval=dataclasses.replace(base.eval, num=num, force=True))
  workdir = args.workdir
  is_default = workdir is None
  if workdir:
    exported.check_workdir(workdir)
  if is_default:
    # A separate folder, because the learning rates of a quick run have decayed and a long run must not resume it.
    quick = '_quick' if args.quick else ''
    workdir = os.path.join('runs', f'compare_{args.config.name}{quick}')

  app.configure()
  mesh = sharding.make_mesh()
  source = sources.load_source(base.data)
  evaluate = evaluator.make_data_evaluator(base, source, mesh)  # fails before training if weights or labels are missing
  failed: dict[str, UserError] = {}
  for index in range(args.seeds):
    for name, config in configs.items():
      config = dataclasses.replace(config, seed=config.seed + index)
      decay = config.optim.ema_decay
      print(f'--- {comparison.METHODS[name].title}, T = {config.diffusion.num_timesteps}, seed {config.seed}: '
            f'{num_steps:,} steps{f", ema_decay {decay:.4g}" if decay != base.optim.ema_decay else ""}', flush=True)
      folder = os.path.join(workdir, measurement.run_folder(name, index))
      if is_default and Checkpoints(folder).latest_step() is not None:
        workdir_lib.check_data(folder, config, source, workdir)
      try:
        finished = measurement.train(config, folder)
      except UserError as error:  # such as diverged losses
        print(f'{comparison.METHODS[name].title} is left out: {error}', flush=True)
        failed[name] = error
        continue
      if not finished:
        print('Stopped; the same command resumes.', flush=True)
        return
    configs = {name: config for name, config in configs.items() if name not in failed}
    is_last = index + 1 == args.seeds
    if configs and (is_last or not measurement.are_finished(configs, workdir, index + 1)):
      rows = measurement.measure(evaluate, base, list(configs), workdir, mesh, source.checksum, index + 1)
      measurement.time_samplers(rows, args.repeats)
      measurement.write(rows, workdir, base, num_steps)
  if failed:
    raise UserError(f'{len(failed)} methods failed: {"; ".join(map(str, failed.values()))}')


def _configs(names: Sequence[str], base: config_lib.Config, num_steps: int, explicit: bool) -> dict:
  """The config of each method; leaves out those that cannot be combined with `base`, unless they are `explicit`."""
  from ddgan_jax.compare import comparison

  configs = {}
  for name in names:
    try:
      configs[name] = comparison.method_config(base, comparison.METHODS[name], num_steps)
    except ConfigError as error:
      if explicit:
        raise
      print(f'{comparison.METHODS[name].title} is left out: {error}', flush=True)
  return configs


if __name__ == '__main__':
  app.start(main)
