"""Sample images from a run: `ddgan sample --workdir runs/digits --num 64 --seed 0 --out samples.png`.

`--out x.png` writes one grid, `x.npz` an array `images`, uint8 [n, H, W, C] (with data.value_range float32 in the units
of the data), and any other name a folder of PNGs.
Points (data.name `gaussians25`) are float32 [n, 1, 1, 2] in an npz and a scatter plot in a PNG.
Image i is a function of the seed and i, independent of the batch size and of `--num`.

For a conditional run (generator.num_classes > 0), `--label 3` samples that class, and `--label 3,1,4` or `--label all`
samples several in turn (one column each in a grid). Without the flag, or with `--label none`, images are from all
classes; a run trained with generator.label_dropout=0 requires a label.

For a run with data.condition, `--condition` names the conditions themselves, an image, a folder or an npz with
`conditions` (for `mask`, images whose hole is transparent), and `--condition_from` images from which they are computed.
Each gets `--num` samples (default 6), in one row of a grid: the condition, the samples, their mean, twice their
standard deviation and, with `--condition_from`, the true image. Sample j of condition c is image c · num + j.

`--trajectory` shows the denoising steps: a strip from noise x_T to the sample x_0, one row per image, with G's
prediction at each step (`--out strip.png`), or an animation with one frame per x_t (`--out strip.gif`). At most 16
images, by default 4. Points are shown as one cloud, by default of 2,000.
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence

import numpy as np

from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_sample, _define_flags, __doc__, argv, required=('workdir',))


def _define_flags(define: options.Definer) -> None:
  define.string('workdir', None, "The run's folder.")
  define.integer('num', 64, 'Number of images; with conditions, of each condition (default 6).', lower_bound=1)
  define.integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
  define.string('out', 'samples.png', 'Output: a grid (.png), an array (.npz), or a folder of PNGs.')
  define.integer('batch_size', 100, 'Maximum batch size.', lower_bound=1)
  define.integer('step', None, 'Step of the checkpoint; by default the newest.')
  define.integer(
      'num_timesteps', None, 'Number of sampling steps, a divisor of T; for the methods gaussian, ufogen and siddm.')
  define.float(
      'sigma_rel', None, 'Relative length of the EMA, such as 0.1, of a run with optim.ema_profiles.')
  define.boolean('trajectory', False, 'Show every denoising step: a strip (.png) or an animation (.gif).')
  define.string(
      'label', 'none', "Class labels of a conditional run: one (3), several in turn (3,1,4), 'all', or 'none'.")
  define.string('condition', None, 'Conditions of a run with data.condition: an image, a folder or an npz.')
  define.string('condition_from', None, 'Images from which to compute the conditions: an image, a folder, zip or npz.')


_MAX_ROWS = 16  # of a strip


def _sample(args: types.SimpleNamespace) -> None:
  # Slow to import, so only after the flags are parsed.
  import ddgan_jax
  from ddgan_jax.cli import condition_input, image_output
  from ddgan_jax.data import conditions
  from ddgan_jax.models import labels
  from ddgan_jax.reporting import grids

  image_output.check_out(args.out, args.trajectory)
  config = ddgan_jax.load_config(args.workdir)
  label = labels.parse(args.label, config.generator)
  if args.trajectory and (args.condition or args.condition_from or config.data.condition_shape):
    raise ConfigError('--trajectory: omit it, because it is not available for runs with data.condition')
  given = condition_input.read(config, args.condition, args.condition_from)
  noun = 'points' if config.data.is_points else 'images'
  if args.trajectory and 'num' not in args.given:
    args.num = 2000 if noun == 'points' else min(max(4, np.size(label)), _MAX_ROWS)
  if args.trajectory and noun == 'images' and args.num > _MAX_ROWS:
    raise ConfigError(f'--num is {args.num}; use at most {_MAX_ROWS} images with --trajectory')
  if noun == 'points' and not os.path.splitext(args.out)[1]:
    raise ConfigError(f'--out is {args.out!r}; use a .png (a scatter plot) or an .npz (an array) for points')
  if config.data.value_range and (args.trajectory or not os.path.splitext(args.out)[1]):
    raise ConfigError(f'--out is {args.out!r}; use an .npz (an array) or a .png (a grid) without --trajectory, because '
                      'the run has a data.value_range')
  app.configure()
  run = ddgan_jax.load(args.workdir, args.step, args.num_timesteps, sigma_rel=args.sigma_rel)
  if given:
    args.num = len(given.condition) * (args.num if 'num' in args.given else conditions.SAMPLES_PER_CONDITION)
    images = image_output.generate(run, args.num, args.seed, args.batch_size, label, given.condition)
    image_output.save_conditional(args.out, images, *given, config.data, label)
  elif args.trajectory:
    image_output.save_steps(args.out, image_output.denoise(run, args.num, args.seed, label))
  else:
    images = image_output.generate(run, args.num, args.seed, args.batch_size, label)
    title = f'{run.config.method}, T = {run.schedule.num_timesteps}, step {run.step:,}'
    image_output.save(args.out, images, title, label, value_range=config.data.value_range)
  labelled = '' if label is None else f', label {args.label}'
  if config.data.value_range and args.out.lower().endswith('.png'):
    print(f'{args.out} shows {grids.describe_values(config.data.num_channels, config.data.value_range)}.')
  print(f'{args.num} {noun} from step {run.step:,} of {args.workdir}{labelled}, seed {args.seed}: {args.out}')


if __name__ == '__main__':
  app.start(main)
