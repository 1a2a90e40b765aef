"""Edit images with a run: `ddgan edit --workdir runs/digits --image x.png --mask m.png --out edited.png`.

| `--task` | requires | result |
|---|---|---|
| `inpaint` | `--image`, `--mask` | new pixels where the mask is white; all others are kept exactly |
| `stroke` | `--image` | a realistic image from a stroke painting: diffused to `--level` and denoised |
| `variations` | `--image` | the same from a lower level, for a realistic image |
| `interpolate` | `--image` and `--image2`, or `--between` | `--num` frames between two images or two samples |
| `superres` | `--image`, smaller than the run's by an integer factor | full-size images with the same block means |

Images of any mode and orientation are converted to the run's channels and fitted to its size by the run's data.resize,
or `--resize`. `--out x.png` writes one grid that starts with the input, `x.npz` uint8 arrays `images` and `inputs`, and
any other name a folder of PNGs. Image i is a function of the seed and i.
"""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError

_MAX_MATCH_TIMESTEPS = 16  # above, the backward pass of --method match is too long
_TASKS = {  # task: (required flags, optional flags)
    'inpaint': (('image', 'mask'), ('method', 'num_steps', 'num_resamples')),
    'stroke': (('image',), ('level',)),
    'variations': (('image',), ('level',)),
    'interpolate': ((), ('image', 'image2', 'level', 'between')),
    'superres': (('image',), ('method', 'num_steps')),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_edit, _define_flags, __doc__, argv, required=('workdir',))


def _define_flags(define: options.Definer) -> None:
  define.string('workdir', None, "The run's folder.")
  define.enum('task', 'inpaint', list(_TASKS), 'The kind of edit.')
  define.string('image', None, 'The input image.')
  define.string('image2', None, 'The image to interpolate to.')
  define.string('mask', None, "Mask of the size of the image or of the run: white is inpainted, black is kept.")
  define.list('between', ['0', '1'], 'Two samples to interpolate: their indices, from 0, in the grid of `ddgan sample` '
              'with the same --seed.')
  define.string('out', 'edited.png', 'Output: a grid (.png), an array (.npz), or a folder of PNGs.')
  define.integer('num', 8, 'Number of results or frames.', lower_bound=1)
  define.integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
  define.integer('level', None, 'Level to which the image is diffused, from 1 (mostly kept) to T (hardly anything '
                 'kept); by default T / 2 for stroke and interpolate, T / 4 for variations, rounded up.')
  define.enum('method', None, ['match', 'replace'], 'How inpaint and superres use the known pixels: `match` fits the '
              'noise of the sampler to them, `replace` puts them into each x_t (RePaint, ILVR). By default, `match` '
              f'up to T = {_MAX_MATCH_TIMESTEPS}.')
  define.integer('num_steps', 100, 'Number of Adam steps with --method match.', lower_bound=1)
  define.integer('num_resamples', 10, 'Passes through each level with --method replace, which harmonise new and kept '
                 'pixels; 1 disables resampling.', lower_bound=1)
  define.enum('resize', None, ['none', 'crop', 'cover', 'pad'], 'How images are fitted; by default data.resize.')
  define.integer('batch_size', 100, 'Maximum batch size; smaller takes less memory.', lower_bound=1)
  define.integer('step', None, 'Step of the checkpoint; by default the newest.')
  define.integer('label', None, 'Class label; required if the run was trained with generator.label_dropout=0.')


def _edit(args: types.SimpleNamespace) -> None:
  _check_flags(args)
  # Slow to import, so only after the flags are checked.
  import ddgan_jax
  from ddgan_jax.cli import image_output
  from ddgan_jax.models import conditions, labels

  image_output.check_out(args.out)
  config = ddgan_jax.load_config(args.workdir)
  if config.data.is_points:
    raise ConfigError(f'{args.workdir} is a run on points; use a run on images')
  if config.data.value_range:
    raise ConfigError(f'{args.workdir} is a run with data.value_range; use a run on images of 8 bits')
  labels.check_label(args.label, config.generator, '--label')
  if conditions.is_required(config):
    raise ConfigError(f'{args.workdir} is a run with data.condition={config.data.condition!r}; use ddgan sample '
                      '--condition')
  app.configure()
  run = ddgan_jax.load(args.workdir, args.step, label=args.label)
  results, inputs = _results(run, args)
  image_output.save(args.out, results, inputs=inputs)
  print(f'{args.task}: {len(results)} images from step {run.step:,} of {args.workdir}, seed {args.seed}: {args.out}')


def _results(run: Any, args: types.SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
  """The results of the task and its inputs, [n, H, W, C] uint8 each."""
  from ddgan_jax.cli import image_input
  from ddgan_jax.editing import tasks

  num_timesteps, data = run.schedule.num_timesteps, run.config.data
  data = dataclasses.replace(data, resize=args.resize or data.resize)
  draws = tasks.Draws(args.num, args.seed, args.batch_size)
  matching = args.method == 'match' or (
      args.method is None and 'num_resamples' not in args.given and num_timesteps <= _MAX_MATCH_TIMESTEPS)
  if args.task == 'interpolate' and not args.image:
    return tasks.interpolate_samples(run, tuple(map(int, args.between)), draws)
  if args.task == 'superres':
    factor = image_input.downscale_factor(args.image, data.image_size)
    small = image_input.read_image(
        'image', args.image, dataclasses.replace(data, image_size=data.image_size // factor))
    return tasks.super_resolve(run, small, factor, draws, matching, args.num_steps)
  image = image_input.read_image('image', args.image, data)
  if args.task == 'inpaint':
    mask = image_input.read_mask(args.mask, args.image, data)
    return tasks.inpaint(run, image, mask, draws, matching, args.num_steps if matching else args.num_resamples)
  level = -(-num_timesteps // (4 if args.task == 'variations' else 2)) if args.level is None else args.level
  if not 1 <= level <= num_timesteps:
    raise ConfigError(f'--level is {level}; use 1 … {num_timesteps} (T)')
  if args.task == 'interpolate':
    images = np.stack([image, image_input.read_image('image2', args.image2, data)])
    return tasks.interpolate_images(run, images, draws, level)
  return tasks.image_to_image(run, image, draws, level)


def _check_flags(args: types.SimpleNamespace) -> None:
  """Raises ConfigError for missing or conflicting flags, before anything slow starts."""
  task = args.task
  needed, taken = _TASKS[task]
  for name in ('image', 'image2', 'mask', 'between', 'level', 'method', 'num_steps', 'num_resamples'):
    value = getattr(args, name)
    if name in args.given and name not in needed + taken:
      tasks = [t for t, both in _TASKS.items() if name in both[0] + both[1]]
      raise ConfigError(f'--{name} does not apply to --task {task}; use it with --task {" or ".join(tasks)}')
    if name in needed and not value:
      raise ConfigError(f'--{name} is missing; --task {task} requires {" and ".join("--" + n for n in needed)}')
    if name in ('image', 'image2', 'mask') and value and not os.path.isfile(value):
      raise ConfigError(f'--{name} is {value!r}, which does not exist; use an image file')
  if 'num_resamples' in args.given and (args.method == 'match' or 'num_steps' in args.given):
    raise ConfigError('--num_resamples does not apply to --method match and --num_steps; use --method replace')
  if 'num_steps' in args.given and args.method == 'replace':
    raise ConfigError('--num_steps does not apply to --method replace; use it with --method match')
  if task == 'interpolate':
    if bool(args.image) != bool(args.image2):
      raise ConfigError('--image and --image2: use both, or neither to interpolate samples')
    if args.image and 'between' in args.given:
      raise ConfigError('--between does not apply to --image; use one of them')
    if args.level is not None and not args.image:
      raise ConfigError('--level does not apply to samples; use it with --image and --image2')
    if len(args.between) != 2 or not all(number.isdecimal() and int(number) < 2**32 for number in args.between):
      raise ConfigError(f'--between is {",".join(args.between)!r}; use two indices, such as 0,1')
    if args.num < 2:
      raise ConfigError(f'--num is {args.num}; use at least 2 frames for an interpolation')


if __name__ == '__main__':
  app.start(main)
