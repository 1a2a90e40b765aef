"""Edit with a run: `ddgan edit --workdir runs/digits --image x.png --mask m.png --out edited.png`.

| `--task` | needs | what it does |
|---|---|---|
| `inpaint` | `--image`, `--mask` (white is filled in) | new pixels below the mask; all others are kept exactly |
| `stroke` | `--image` | makes an image of the data's kind from a crude picture: diffused to `--level`, denoised |
| `variations` | `--image` | the same from a lower level, for images that are of the data's kind already |
| `interpolate` | two of `--image`, `--image2`, or two numbers `--between` | `--num` frames from one to the other |
| `superres` | `--image`, smaller than the run's by a whole factor | images of full size with these block means |

Images of any mode and orientation are converted to the run's channels and fitted to its size by the run's
data.resize, or `--resize`. `--out x.png` writes one grid that begins with the input, `x.npz` uint8 `images` and
`inputs`, any other name a folder with one PNG each. Image i depends on the seed and i alone.
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

_MAX_MATCH_TIMESTEPS = 16  # whose backward pass is short enough for --method match
_TASKS = {  # what each needs, and what it takes beside that
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
  define.enum('task', 'inpaint', list(_TASKS), 'What to do.')
  define.string('image', None, 'The picture to begin with.')
  define.string('image2', None, 'The picture to interpolate to.')
  define.string('mask', None, "What to inpaint: white is filled in, black is kept. Of the image's size, or the run's.")
  define.list('between', ['0', '1'], 'Two samples to interpolate between: their numbers in the grid of `ddgan sample` '
              'with the same --seed, from 0.')
  define.string('out', 'edited.png', 'Grid (.png), array (.npz), or folder of PNGs.')
  define.integer('num', 8, 'How many results, or frames.', lower_bound=1)
  define.integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
  define.integer('level', None, 'How far the picture is diffused, from 1 (mostly kept) to T (hardly anything is kept); '
                 'by default T / 2 for stroke and interpolate, T / 4 for variations, rounded up.')
  define.enum('method', None, ['match', 'replace'], 'How inpaint and superres impose the given pixels: `match` fits '
              'the noise of the sampler to them, `replace` puts them into each x_t (RePaint, ILVR). By default `match` '
              f'up to T = {_MAX_MATCH_TIMESTEPS}.')
  define.integer('num_steps', 100, 'Steps of Adam, with --method match.', lower_bound=1)
  define.integer('num_resamples', 10, 'Passes through each level, with --method replace, so that new and kept pixels '
                 'can agree; 1 never goes back.', lower_bound=1)
  define.enum('resize', None, ['none', 'crop', 'cover', 'pad'], 'How pictures are fitted; by default as the run does.')
  define.integer('batch_size', 100, 'Images at a time; fewer take less memory.', lower_bound=1)
  define.integer('step', None, 'Which checkpoint; by default the newest.')
  define.integer('label', None, 'Class of the results; required if the run was trained with generator.label_dropout=0.')


def _edit(args: types.SimpleNamespace) -> None:
  _check_flags(args)
  # After the flags are checked: these take seconds to import.
  import ddgan_jax
  from ddgan_jax.cli import image_output
  from ddgan_jax.models import labels

  image_output.check_out(args.out)
  config = ddgan_jax.load_config(args.workdir)
  if config.data.is_points:
    raise ConfigError(f'{args.workdir}: is a run on points, and only images can be edited')
  labels.check_label(args.label, config.generator, '--label')
  app.configure()
  run = ddgan_jax.load(args.workdir, args.step, label=args.label)
  results, inputs = _results(run, args)
  image_output.save(args.out, results, inputs=inputs)
  print(f'{args.task}: {len(results)} images by step {run.step:,} of {args.workdir}, seed {args.seed}: {args.out}')


def _results(run: Any, args: types.SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
  """What the task makes, and from what: [n, H, W, C] uint8 each."""
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
    raise ConfigError(f'--level: found {level}, must be from 1 to the T = {num_timesteps} of the run')
  if args.task == 'interpolate':
    images = np.stack([image, image_input.read_image('image2', args.image2, data)])
    return tasks.interpolate_images(run, images, draws, level)
  return tasks.image_to_image(run, image, draws, level)


def _check_flags(args: types.SimpleNamespace) -> None:
  """Raises ConfigError for flags that do not go together, before anything slow starts."""
  task = args.task
  needed, taken = _TASKS[task]
  for name in ('image', 'image2', 'mask', 'between', 'level', 'method', 'num_steps', 'num_resamples'):
    value = getattr(args, name)
    if name in args.given and name not in needed + taken:
      tasks = [t for t, both in _TASKS.items() if name in both[0] + both[1]]
      raise ConfigError(f'--{name}: is for --task {" or ".join(tasks)}, found --task {task}')
    if name in needed and not value:
      raise ConfigError(f'--{name}: missing, --task {task} needs {" and ".join("--" + n for n in needed)}')
    if name in ('image', 'image2', 'mask') and value and not os.path.isfile(value):
      raise ConfigError(f'--{name}: no such file {value!r}')
  if 'num_resamples' in args.given and (args.method == 'match' or 'num_steps' in args.given):
    raise ConfigError('--num_resamples: is for --method replace, which --method match and --num_steps are not')
  if 'num_steps' in args.given and args.method == 'replace':
    raise ConfigError('--num_steps: is for --method match, found --method replace')
  if task == 'interpolate':
    if bool(args.image) != bool(args.image2):
      raise ConfigError('--image and --image2: give both, or neither to interpolate between samples')
    if args.image and 'between' in args.given:
      raise ConfigError('--between: numbers samples, so it does not go with --image')
    if args.level is not None and not args.image:
      raise ConfigError('--level: is for --image and --image2; samples are interpolated from the noise on')
    if len(args.between) != 2 or not all(number.isdecimal() and int(number) < 2**32 for number in args.between):
      raise ConfigError(f'--between: found {",".join(args.between)!r}, must be two numbers from 0, such as 0,1')
    if args.num < 2:
      raise ConfigError(f'--num: found {args.num}, an interpolation has at least 2 frames')


if __name__ == '__main__':
  app.start(main)
