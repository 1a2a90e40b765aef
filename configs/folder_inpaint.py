"""Inpainting, trained on your own images with random boxes and strokes, T = 4.

    ddgan train --config folder_inpaint:64 --config.data.path=photos
    ddgan sample --workdir runs/folder_inpaint_photos --condition hole.png

The transparent pixels of `hole.png` are filled. The data, sizes and networks are those of `folder.py`. Not a published
recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '64') -> ml_collections.ConfigDict:
  c = recipes.load(f'folder:{image_size}')
  c.diffusion.num_timesteps = 4
  c.data.condition = 'mask'
  return c
