"""4x super-resolution of your own images (2x at 8 pixels), T = 4.

    ddgan train --config folder_superres:64 --config.data.path=photos
    ddgan sample --workdir runs/folder_superres_photos --condition small.png

The data, sizes and networks are those of `folder.py`. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '64') -> ml_collections.ConfigDict:
  c = recipes.load(f'folder:{image_size}')
  c.diffusion.num_timesteps = 4
  c.data.condition = 'lowres:2' if c.data.image_size == 8 else 'lowres:4'
  c.objective.reconstruction_weight = 1.0
  return c
