"""Compute metrics of a run or of images: `ddgan evaluate --workdir runs/cifar10 --metrics fid,is,pr --num 50000`.

Evaluates a run's EMA generator (`--workdir`) or images (`--images`, a folder, zip or npz). The reference is the data of
the run or of `--config`, or `--reference`: images, or published statistics (`.npz`, `.npy`). Prints a table and writes
JSON; metrics measured under the same conditions share a file. `--config cifar10 --statistics FILE.npz` writes the
statistics of the data for `--metrics fid`, `fid_clean` or `fd_dinov2`.

`fid`, `fid_clean`, `is`, `kid` and `mind` need the FID Inception weights; `pr` (improved precision and recall) and `dc`
(density and coverage) need VGG16 weights; `fd_dinov2`, `mind_dinov2`, `pr_dinov2` and `dc_dinov2` need DINOv2 weights.
`modes` trains a classifier on the data's labels and needs no download. `label_accuracy` is the fraction of a
conditional run's samples that this classifier assigns to the requested label. `authenticity_dinov2`, `_inception`,
`_vgg16` and `_classifier` measure the share of samples that are no copies of training images, with these features.

`psnr`, `ssim`, `diversity` and `consistency` compare samples of a run with data.condition to the true images, to their
conditions and to each other, `--samples_per_condition` for each image of the data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Callable, Sequence
from typing import Any

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError, checks, exported, protocols

_NUM_CLOSEST = 10  # samples in the picture of --closest


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_evaluate, _define_flags, __doc__, argv)


def _define_flags(define: options.Definer) -> None:
  define.config('The recipe whose data are the reference; by default, that of the run')
  define.string('workdir', None, "The run's folder.")
  define.string('images', None, 'Images to evaluate: a folder, a zip, or an npz with uint8 `images`.')
  define.string('statistics', None, 'Write the statistics of the data of --config to this .npz.')
  define.list('metrics', None, f'Some of {", ".join(checks.METRICS)}, or of '
              f'{", ".join(checks.CONDITION_METRICS)}; by default, those of the config; fid with --statistics.')
  define.string('reference', None, 'Reference images, or an .npz or .npy with mu and sigma; by default, the data.')
  define.enum('protocol', None, sorted(protocols.PROTOCOLS), 'Settings of a paper, which replace and fix these flags; '
              'see docs/evaluation.md.')
  define.integer('num', None, 'Maximum number of images, by default 50,000; for psnr, ssim, diversity and consistency, '
                 'of conditions.', lower_bound=2)
  define.integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
  define.integer('seeds', None, 'Measure samples of this number of seeds, from --seed on; by default 1.', lower_bound=1)
  define.integer('step', None, 'Step of the checkpoint; by default the newest.')
  define.integer(
      'num_timesteps', None, 'Number of sampling steps, a divisor of T; for the methods gaussian, ufogen and siddm.',
      lower_bound=1)
  define.float(
      'sigma_rel', None, 'Relative length of the EMA, such as 0.1, of a run with optim.ema_profiles.')
  define.integer(
      'samples_per_condition', 8, 'Samples of each condition, for psnr, ssim, diversity, consistency.', lower_bound=1)
  define.string('held_out', None, 'For authenticity: held-out images (a folder, zip or npz), or a split of the data, '
                'such as test.')
  define.string('closest', None, 'For authenticity: a .png to write, of the samples closest to training images.')
  define.integer('splits', None, 'Splits of the Inception score, by default 10; the paper uses 1.', lower_bound=1)
  define.integer('batch_size', 200, 'Batch size over all devices.', lower_bound=1)
  define.boolean('force', False, 'Allow fewer than 10,000 images; the result is marked as biased.')
  define.boolean('jpeg', False, 'Compress both image sets as JPEG (quality 75), as the original does with its samples.')
  define.string('out', None, 'JSON file; by default evaluation_<step>.json in the workdir of a run; _2, … for other '
                'conditions.')
  define.string('inception', None, 'File of the FID Inception weights; by default, downloaded and cached.')
  define.string('vgg16', None, 'File of the VGG16 weights; by default, downloaded and cached.')
  define.string('dinov2', None, 'File of the DINOv2 weights; by default, downloaded and cached.')
  define.enum(
      'dinov2_model', 'vitl14', ['vitl14', 'vitb14'], 'DINOv2 network; published values are those of vitl14.')
  define.boolean('any_weights', False, 'Accept weights other than the published ones.')
  define.processes()


def _evaluate(args: types.SimpleNamespace) -> None:
  config = _check_flags(args)
  options.join_processes(args)
  # Slow to import, so only after the flags are checked.
  import numpy as np

  from ddgan_jax.data import sources
  from ddgan_jax.metrics import evaluator, image_sets, points, statistics
  from ddgan_jax.parallel import consensus, processes, sharding
  from ddgan_jax.reporting import grids

  app.configure()
  log = print if processes.is_main() else lambda text: None
  mesh = sharding.make_mesh()
  metrics = tuple(args.metrics or (config.eval.metrics if config and not args.statistics else ('fid',)))
  if set(metrics) <= set(checks.CONDITION_METRICS):
    _evaluate_conditions(args, config, metrics, mesh, log)
    return
  run, images_of = _load_images(args, config, mesh, log)
  if 'label_accuracy' in metrics:
    evaluator.check_label_accuracy(images_of(args.seed))
  if config and config.data.is_points:
    if not run or metrics != ('modes',) or args.jpeg or args.reference:
      raise ConfigError(f'data.name is {config.data.name!r}; use --workdir DIR --metrics modes for points')
    _measure(args, run, images_of, lambda images: points.evaluate(images, args.num, args.batch_size, mesh), log)
    return
  source = reference = classifier = None
  if config and (evaluator.needs_classifier(metrics) or not args.reference):
    source = sources.load_source(config.data, log)
    consensus.barrier('data')  # loading may take much longer on one machine
  if args.reference:
    reference = image_sets.read_reference(args.reference, config.data.num_channels if config else 3)
  elif source:
    reference = image_sets.dataset_images(source, config.data)
  held_out = _held_out(args, config, log)
  if args.jpeg:
    reference, held_out = image_sets.compress_jpeg(reference), image_sets.compress_jpeg(held_out)
  if evaluator.needs_classifier(metrics) and source:
    classifier = evaluator.load_classifier(source, config, metrics, log)
  measure = evaluator.Evaluator(
      metrics, reference, mesh, args.num, args.batch_size, classifier,
      {name: getattr(args, name) for name in ('inception', 'vgg16', 'dinov2')}, args.any_weights, log, args.splits,
      args.dinov2_model, held_out, _NUM_CLOSEST if args.closest else 0)
  if not args.statistics:
    compress = image_sets.compress_jpeg if args.jpeg else lambda images: images
    _measure(args, run, images_of, lambda images: measure.evaluate(compress(images)), log)
    if args.closest and processes.is_main():
      rows = np.concatenate(measure.closest)
      heads = {'the least authentic samples, above the nearest training images': len(rows) // 2}
      grids.save_png(args.closest, grids.make_grid(rows, heads=heads))
      log(f'The samples closest to training images: {args.closest}')
    return
  found = measure.reference_statistics()
  if processes.is_main():
    statistics.write(args.statistics, found)
  log(f'Statistics of {found.count:,} images of {found.name} ({found.features}): {args.statistics}')


def _held_out(args: types.SimpleNamespace, config: config_lib.Config | None, log: Callable[[str], None]) -> Any:
  """The images of --held_out, or None."""
  from ddgan_jax.data import sources
  from ddgan_jax.metrics import image_sets

  if not args.held_out:
    return None
  if os.path.exists(args.held_out):
    return image_sets.file_images(args.held_out, config.data.num_channels if config else 3)
  if not config or config.data.name in config_lib.FILE_SOURCES:
    raise ConfigError(f'--held_out is {args.held_out!r}; use a folder, zip or npz that exists')
  data_config = dataclasses.replace(config.data, split=args.held_out)
  return image_sets.dataset_images(sources.load_source(data_config, log), data_config)


def _load_images(
    args: types.SimpleNamespace, config: config_lib.Config | None, mesh: Any, log: Callable[[str], None]
) -> tuple[Any, Any]:
  """The run or None, and a function from the seed to the images to evaluate."""
  from ddgan_jax.metrics import image_sets

  if args.workdir:
    return _load_run(args, config, mesh, log)[:2]
  images = None
  if args.images:
    images = image_sets.file_images(args.images, config.data.num_channels if config else 3)
    checks.check_num_samples(f'{args.images}: images', images.size, args.force, '--force')
  return None, lambda seed: images


def _condition_data(
    args: types.SimpleNamespace, of_run: config_lib.Config, config: config_lib.Config, log: Callable[[str], None]
) -> Any:
  """The data whose conditions are sampled: --reference, or the data of the config. Raises ConfigError."""
  from ddgan_jax.data import sources
  from ddgan_jax.data.readers import PathError
  from ddgan_jax.data.readers.open import kind_of
  from ddgan_jax.metrics import image_sets
  from ddgan_jax.models import labels
  from ddgan_jax.parallel import consensus

  data_config, of_conditions = config.data, bool(set(args.metrics or ()) & set(checks.CONDITION_METRICS))
  if args.reference and of_conditions:
    if of_run.data.condition == 'pairs' or args.config:
      raise ConfigError('--reference: use --config with the data and their conditions instead')
    try:
      data_config = dataclasses.replace(
          of_run.data, name=kind_of(args.reference), path=args.reference, split='train', data_dir='')
    except PathError as error:
      raise ConfigError(f'--reference: {error.problem}') from error
  for field in ('image_size', 'num_channels', 'stack', 'value_range', 'pair_range'):
    found, expected = (getattr(each, field) for each in (data_config, of_run.data))
    if found != expected:
      raise ConfigError(f'--config.data.{field} is {found}; use {expected}, as in the run')
  if of_run.data.condition != 'pairs':
    data_config = dataclasses.replace(data_config, condition=of_run.data.condition)
  if data_config.condition_shape != of_run.data.condition_shape:
    raise ConfigError(f'--config.data.condition is {data_config.condition!r}; use the pairs, pair_size and '
                      'pair_channels of the run')
  source = sources.load_source(data_config, log)
  labels.check_data(of_run, source)
  consensus.barrier('conditions')  # loading may take much longer on one machine
  return image_sets.ConditionData(source, data_config, args.samples_per_condition if of_conditions else 1)


def _evaluate_conditions(
    args: types.SimpleNamespace, config: config_lib.Config, metrics: tuple[str, ...], mesh: Any,
    log: Callable[[str], None]) -> None:
  """Writes the report of the metrics of `restoration`."""
  from ddgan_jax.metrics import restoration

  run, images_of, given = _load_run(args, config, mesh, log)
  evaluate = lambda images: restoration.evaluate(images, given, metrics, args.num, args.batch_size, mesh)
  _measure(args, run, images_of, evaluate, log)


def _load_run(
    args: types.SimpleNamespace, config: config_lib.Config, mesh: Any, log: Callable[[str], None]
) -> tuple[Any, Any, Any]:
  """The run of --workdir, its samples by seed, and the data of their conditions or None."""
  from ddgan_jax.metrics import image_sets
  from ddgan_jax.parallel import sharding

  run = ddgan_jax.load(
      args.workdir, args.step, args.num_timesteps, sharding.replicated(mesh), sigma_rel=args.sigma_rel)
  given = _condition_data(args, run.config, config, log) if run.config.data.condition_shape else None
  length = '' if args.sigma_rel is None else f', sigma_rel {args.sigma_rel}'
  sampled = image_sets.generated_images(run.config, args.seed, mesh, args.num_timesteps, given)
  name = f'{args.workdir}, step {run.step:,}{length}, seed'
  return run, lambda seed: sampled(run.params, f'{name} {seed}', seed), given


def _measure(
    args: types.SimpleNamespace, run: Any, images_of: Callable[[int], Any], evaluate: Callable[[Any], dict],
    log: Callable[[str], None]) -> None:
  """Measures the images of each seed, then prints and writes the report, with several seeds that of their means."""
  from ddgan_jax.metrics import reports

  found = []
  for seed in range(args.seed, args.seed + args.seeds):
    found.append(evaluate(images_of(seed)))
    if args.seeds > 1:
      log(reports.table(found[-1]))
  if args.protocol:
    log(protocols.describe(args.protocol))
  _write_report(reports.average(found), run, args, log)


def _write_report(report: dict, run: Any, args: types.SimpleNamespace, log: Callable[[str], None]) -> None:
  """Prints a report and writes it as JSON."""
  from ddgan_jax.metrics import reports, statistics
  from ddgan_jax.parallel import processes

  log(reports.table(report))
  if not processes.is_main() or not (run or args.out):
    return
  report |= {'jpeg': args.jpeg} | ({'protocol': args.protocol} if args.protocol else {})
  if run:
    report |= {'step': run.step, 'seed': args.seed, 'num_timesteps': run.schedule.num_timesteps,
               'generator_digest': statistics.digest(run.params)}
  if args.out:
    from etils import epath
    epath.Path(args.out).write_text(json.dumps(report, indent=2) + '\n')
  elif exported.is_exported(args.workdir):
    log('Not saved; use --out to write JSON.')
    return
  log(f'As JSON: {args.out or reports.save(args.workdir, report)}')


def _check_flags(args: types.SimpleNamespace) -> config_lib.Config | None:
  """The config whose data are the reference, or None. Raises ConfigError for conflicting flags."""
  protocols.complete(args)
  if args.workdir:
    args.workdir = os.path.expanduser(args.workdir)
  if args.seed + args.seeds > 2**32:
    raise ConfigError(f'--seed is {args.seed} and --seeds {args.seeds}; use seeds below 2^32')
  given = [f'--{name}' for name in ('workdir', 'images', 'statistics') if getattr(args, name)]
  if len(given) != 1:
    raise ConfigError(f'{" and ".join(given) or "nothing to evaluate"}: use one of --workdir, --images and '
                      '--statistics (with --config)')
  authentic = [name for name in args.metrics or () if name.startswith('authenticity')]
  for flag in ('held_out', 'closest'):
    if getattr(args, flag) and not authentic:
      raise ConfigError(f'--{flag}: use it with --metrics authenticity_dinov2, or that of other features')
  if args.closest and not args.closest.lower().endswith('.png'):
    raise ConfigError(f'--closest is {args.closest!r}; use a .png')
  if args.seeds > 1 and not args.workdir:
    raise ConfigError(f'--seeds is {args.seeds}; use it with --workdir, because {given[0]} has no seed')
  of_conditions = [name for name in args.metrics or () if name in checks.CONDITION_METRICS]
  if args.metrics:
    checks.check_metrics('--metrics', args.metrics, checks.METRICS + checks.CONDITION_METRICS)
    others = [name for name in args.metrics if name not in of_conditions]
    if of_conditions and others:
      raise ConfigError(f'--metrics has {of_conditions[0]} and {others[0]}; measure them in separate commands')
  if args.statistics and args.metrics and (len(args.metrics) > 1 or args.metrics[0] not in checks.STATISTICS_METRICS):
    raise ConfigError(f'--metrics is {",".join(args.metrics)}; use one of {", ".join(checks.STATISTICS_METRICS)} with '
                      '--statistics')
  if of_conditions and args.jpeg:
    raise ConfigError(f'--jpeg: omit it with --metrics {",".join(of_conditions)}')
  if 'diversity' in of_conditions and args.samples_per_condition < 2:
    raise ConfigError('--samples_per_condition is 1; use at least 2 for diversity')
  if not args.statistics and not of_conditions:
    checks.check_num_samples('--num', args.num, args.force, '--force')
  config = config_lib.from_config_dict(args.config.fields) if args.config else None
  if args.statistics and not config:
    raise ConfigError('--statistics requires --config, the recipe of the data')
  if args.workdir and not config and exported.is_exported(args.workdir) and not exported.is_file(args.workdir):
    # The config may be from a stranger, so it does not decide which data are read.
    raise ConfigError(f'--config is required with --workdir {args.workdir}; use the recipe of the data')
  of_run = ddgan_jax.load_config(args.workdir) if args.workdir else None
  if of_conditions and not (of_run and of_run.data.condition_shape):
    raise ConfigError(f'{", ".join(of_conditions)}: use --workdir with a run that has a data.condition')
  if 'consistency' in of_conditions and of_run.data.condition == 'pairs':
    raise ConfigError("consistency: omit it, because data.condition='pairs' cannot be computed from samples")
  if args.protocol:
    protocols.check_data(args.protocol, config or of_run)
  ranges = [each.data.value_range for each in (config, of_run) if each and each.data.value_range]
  config = config or of_run
  if ranges and not of_conditions:
    raise ConfigError(f'data.value_range is {ranges[0]}; use --metrics with some of '
                      f'{", ".join(checks.CONDITION_METRICS)}, because the others are for images of 8 bits')
  return config


if __name__ == '__main__':
  app.start(main)
