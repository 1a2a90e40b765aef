"""Measure: `python -m ddgan_jax.evaluate --workdir runs/cifar10 --metrics fid,is,pr --num 50000`.

Of a run's EMA generator (`--workdir`) or of images (`--images`, a folder, zip or npz). The reference is the data of the
run, or of `--config`, or `--reference`: images, or statistics as published (`.npz`, `.npy`). Prints a table and writes
JSON; metrics measured under the same conditions share a file. `--config configs/cifar10.py --statistics FILE.npz`
writes the data's own statistics.

`fid` and `is` want the FID Inception weights and `kid` too, `pr` (improved precision and recall) and `dc` (density and
coverage) VGG16's; `modes` trains a classifier on the data's labels and needs no download. `label_accuracy` asks a run
with labels (generator.num_classes) for each of them, and that classifier for what it sees.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app
from ddgan_jax.config import ConfigError, checks
from ddgan_jax.parallel import consensus, processes

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Whose data is the reference; by default the run\'s.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The run to be measured.')
_IMAGES = flags.DEFINE_string('images', None, 'Images to be measured: a folder, a zip, or an npz with uint8 `images`.')
_STATISTICS = flags.DEFINE_string('statistics', None, 'Write the statistics of the data of --config to this .npz.')
_METRICS = flags.DEFINE_list(
    'metrics', None, 'Some of fid, is, kid, pr, dc, modes, label_accuracy; by default those of the config.')
_REFERENCE = flags.DEFINE_string(
    'reference', None, 'Images, or an .npz or .npy with mu and sigma; by default the data.')
_NUM = flags.DEFINE_integer('num', 50_000, 'How many images at most.', lower_bound=2)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; by default the newest.')
_NUM_TIMESTEPS = flags.DEFINE_integer(
    'num_timesteps', None, 'Steps to sample in, of a run of Gaussian diffusion.', lower_bound=1)
_SPLITS = flags.DEFINE_integer(
    'splits', 10, 'Parts that the Inception score is averaged over; 10 is usual, the paper uses 1.',
    lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 200, 'Images at a time, over all devices.', lower_bound=1)
_FORCE = flags.DEFINE_boolean('force', False, 'Measure fewer than 10,000 images; the result is marked as biased.')
_JPEG = flags.DEFINE_boolean(
    'jpeg', False, 'Put both sides through JPEG (quality 75), as the original does with its samples.')
_OUT = flags.DEFINE_string(
    'out', None, 'Where the JSON goes; by default evaluation_<step>.json in the workdir, _2, … for other conditions.')
_INCEPTION = flags.DEFINE_string(
    'inception', None, 'File of the FID Inception weights; by default found or downloaded.')
_VGG16 = flags.DEFINE_string('vgg16', None, 'File of the VGG16 weights; by default found or downloaded.')
_ANY_WEIGHTS = flags.DEFINE_boolean('any_weights', False, 'Also take weights that are not the published ones.')
processes.define_flags()


def main(argv: list[str]) -> None:
  del argv
  config = _check_flags()
  processes.initialize_from_flags()
  # After the flags are checked: these take seconds to import.
  import ddgan_jax
  from ddgan_jax.data import sources
  from ddgan_jax.metrics import evaluator, image_sets, modes, statistics
  from ddgan_jax.metrics.evaluator import Evaluator
  from ddgan_jax.parallel import compilation, sharding

  compilation.use_persistent_cache()
  say = print if processes.is_main() else lambda text: None
  mesh = sharding.make_mesh()
  metrics = ('fid',) if _STATISTICS.value else tuple(_METRICS.value or (config.eval.metrics if config else ('fid',)))
  run = None
  num_channels = config.data.num_channels if config else 3
  if _WORKDIR.value:
    run = ddgan_jax.load(_WORKDIR.value, _STEP.value, _NUM_TIMESTEPS.value, sharding.replicated(mesh))
    images = image_sets.of_generator(run.config, _SEED.value, mesh, _NUM_TIMESTEPS.value)(
        run.params, f'{_WORKDIR.value}, step {run.step:,}, seed {_SEED.value}')
  elif _IMAGES.value:
    images = image_sets.of_files(_IMAGES.value, num_channels)
    checks.check_enough(f'{_IMAGES.value}: images', images.size, _FORCE.value, '--force')
  if 'label_accuracy' in metrics:
    evaluator.check_asked(images)
  if config and config.data.is_points:
    if not run or metrics != ('modes',) or _JPEG.value or _REFERENCE.value:
      raise ConfigError(f'{config.data.name}: points have modes alone; --workdir DIR --metrics modes would be right')
    _finish(evaluator.evaluate_points(images, _NUM.value, _BATCH_SIZE.value, mesh), run, say)
    return
  source = None
  if config and (evaluator.needs_judge(metrics) or not _REFERENCE.value):
    source = sources.load_source(config.data, say)
    consensus.meet('data')  # which may take one machine much longer than another
  reference = None
  if _REFERENCE.value:
    reference = statistics.read(_REFERENCE.value) if _holds_statistics(_REFERENCE.value) else image_sets.of_files(
        _REFERENCE.value, num_channels)
  elif source:
    reference = image_sets.of_data(source, config.data)
  if _JPEG.value:
    if isinstance(reference, statistics.Statistics):
      raise ConfigError('--jpeg: needs images as reference, so that both sides are treated alike')
    reference = reference and image_sets.as_jpeg(reference)
    if not _STATISTICS.value:
      images = image_sets.as_jpeg(images)
  judge = None
  if evaluator.needs_judge(metrics) and source:
    judge = modes.load_judge(source, say), config.data.stack == 3
  evaluator = Evaluator(
      metrics, reference, mesh, _NUM.value, _BATCH_SIZE.value, judge,
      {'inception': _INCEPTION.value, 'vgg16': _VGG16.value}, _ANY_WEIGHTS.value, say, _SPLITS.value)
  if _STATISTICS.value:
    found = evaluator.reference_statistics()
    if processes.is_main():
      statistics.write(_STATISTICS.value, found)
    say(f'Statistics of {found.count:,} images of {found.name}: {_STATISTICS.value}')
    return
  _finish(evaluator.evaluate(images), run, say)


def _finish(report: dict, run: Any, say: Callable[[str], None]) -> None:
  """Prints a report, and writes it."""
  from ddgan_jax.metrics import evaluator, reports, statistics

  say(evaluator.table(report))
  if not processes.is_main() or not (run or _OUT.value):
    return
  report |= {'jpeg': _JPEG.value}
  if run:
    report |= {'step': run.step, 'seed': _SEED.value, 'num_timesteps': run.schedule.num_timesteps,
               'generator_digest': statistics.digest(run.params)}
  if _OUT.value:
    from etils import epath

    epath.Path(_OUT.value).write_text(json.dumps(report, indent=2) + '\n')
  say(f'As JSON: {_OUT.value or reports.keep(_WORKDIR.value, report)}')


def _check_flags() -> config_lib.Config | None:
  """The config whose data is the reference; None if there is none. Raises ConfigError."""
  given = [name for name, flag in (('--workdir', _WORKDIR), ('--images', _IMAGES), ('--statistics', _STATISTICS))
           if flag.value]
  if len(given) != 1:
    raise ConfigError(f'{" and ".join(given) or "nothing to measure"}: give one of --workdir, --images and '
                      '--statistics (with --config)')
  if _METRICS.value:
    checks.check_metrics('--metrics', _METRICS.value)
  if not _STATISTICS.value:
    checks.check_enough('--num', _NUM.value, _FORCE.value, '--force')
  if _CONFIG.value is not None:
    return config_lib.from_config_dict(_CONFIG.value)
  if _STATISTICS.value:
    raise ConfigError('--statistics: needs --config, whose data they are to be of')
  if _WORKDIR.value:
    from etils import epath

    file = epath.Path(_WORKDIR.value) / 'config.json'
    if not file.exists():
      raise ConfigError(f'{_WORKDIR.value}: has no config.json, so it is not the workdir of a run')
    return config_lib.from_json(file.read_text(), str(file))
  return None


def _holds_statistics(path: str) -> bool:
  """Whether a file is statistics rather than images."""
  if path.endswith('.npz') and os.path.isfile(path):
    try:
      with zipfile.ZipFile(path) as archive:
        return 'images.npy' not in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
      return True  # whose reader says what is wrong with it
  return path.endswith('.npy')


if __name__ == '__main__':
  app.run(main)
