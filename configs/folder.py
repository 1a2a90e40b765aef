"""Your own images at 8, 16, 32, 64, 128 or 256 pixels (after the colon; default 64).

    ddgan train --config folder:32 --config.data.path=photos

`photos` is a directory tree of PNG, JPEG, WebP, … of any size; class folders become labels. The shorter side of each
image is resized to the given size and the centre is cropped. Set `--config.data.name` to zip, npz or lmdb for these
formats.

8 and 16 pixels train on a laptop, with the network of `digits.py`. 32 and 64 use the CIFAR-10 recipe, 128 and 256 the
CelebA-HQ recipe with T = 4; these need GPUs. Not a published recipe: with few images, check that the samples are not
copies of the training images.
"""

import ml_collections

from ddgan_jax.config import recipes

_SIZES = (8, 16, 32, 64, 128, 256)


def get_config(image_size: str = '64') -> ml_collections.ConfigDict:
  if image_size not in map(str, _SIZES):
    raise ValueError(f'image size {image_size!r} is not supported; use one of {", ".join(map(str, _SIZES))}')
  size = int(image_size)
  if size <= 16:
    c = recipes.load('digits')
    c.generator.ch_mult = (1, 2) if size == 8 else (1, 2, 2)
  elif size <= 64:
    c = recipes.load('cifar10')
    c.train.num_steps = 200_000
  else:
    c = recipes.load('celebahq_256')
    c.diffusion.num_timesteps = 4
    c.generator.ch_mult = (1, 1, 2, 2, 4, 4) if size == 256 else (1, 1, 2, 4, 4)
  c.data.update(name='folder', path='', image_size=size, num_channels=3, resize='cover', flip=False)
  return c
