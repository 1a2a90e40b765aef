"""Images from a run: `python -m ddgan_jax.sample --workdir runs/digits --num 64 --seed 0 --out samples.png`.

`--out x.png` writes one grid, `x.npz` uint8 [n, H, W, C] under `images`, any other name a folder with one PNG each.
Points (data.name `gaussians25`) stay float32 [n, 1, 1, 2] in an npz, and a PNG is their scatter picture.
Image i depends on the seed and i alone, not on the batch size or on how many are asked for.

A run that was trained with labels (generator.num_classes) is asked for one by `--label 3`, for several in turn by
`--label 3,1,4` or `--label all` (image i gets the next one; a grid has a column for each), and without the flag, or by
`--label none`, for images of any class; a run that was trained with generator.label_dropout=0 needs a label.
"""

from __future__ import annotations

import os

from absl import flags

import ddgan_jax
from ddgan_jax.cli import app, image_output
from ddgan_jax.config import ConfigError
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation

_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
_NUM = flags.DEFINE_integer('num', 64, 'How many images.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
_OUT = flags.DEFINE_string('out', 'samples.png', 'Grid (.png), array (.npz), or folder of PNGs.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 100, 'Images at a time.', lower_bound=1)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; by default the newest.')
_NUM_TIMESTEPS = flags.DEFINE_integer(
    'num_timesteps', None, 'Steps to sample in; only Gaussian diffusion can do with fewer than in training.')
_LABEL = flags.DEFINE_string(
    'label', 'none', "What a run with labels is asked for: such as 3, several in turn as 3,1,4, 'all', or 'none'.")


def main(argv: list[str]) -> None:
  del argv
  image_output.check_out(_OUT.value)
  config = ddgan_jax.load_config(_WORKDIR.value)
  label = labels.parse(_LABEL.value, config.generator)
  things = 'points' if config.data.is_points else 'images'
  if things == 'points' and not os.path.splitext(_OUT.value)[1]:
    raise ConfigError(f'--out: found {_OUT.value!r}, but points go to a .png (a scatter picture) or .npz (an array)')
  compilation.use_persistent_cache()
  run = ddgan_jax.load(_WORKDIR.value, _STEP.value, _NUM_TIMESTEPS.value)
  images = image_output.generate(run, _NUM.value, _SEED.value, _BATCH_SIZE.value, label)
  title = f'{run.config.method}, T = {run.schedule.num_timesteps}, step {run.step:,}'
  image_output.save(_OUT.value, images, title, label)
  asked = '' if label is None else f', label {_LABEL.value}'
  print(f'{len(images)} {things} of step {run.step:,} of {_WORKDIR.value}{asked}, seed {_SEED.value}: {_OUT.value}')


if __name__ == '__main__':
  app.run(main)
