"""Colourisation, trained on your own images, T = 4.

    ddgan train --config folder_colourise:64 --config.data.path=photos
    ddgan sample --workdir runs/folder_colourise_photos --condition grey.png

The data, sizes and networks are those of `folder.py`. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '64') -> ml_collections.ConfigDict:
  c = recipes.load(f'folder:{image_size}')
  c.diffusion.num_timesteps = 4
  c.data.condition = 'grey'
  return c
