"""Image-to-image translation, from pairs of your own images, T = 4.

    ddgan train --config pairs:64 --config.data.path=photos --config.data.condition_path=sketches
    ddgan sample --workdir runs/pairs_photos --condition sketch.png

`sketches` has an image of the same name for each image in `photos`; extensions may differ. The data, sizes and networks
are those of `folder.py`, with an L1 term as in SynDiff
(Özbey et al., 2023); set `--config.data.pair_channels=1` for grey conditions. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '64') -> ml_collections.ConfigDict:
  c = recipes.load(f'folder:{image_size}')
  c.diffusion.num_timesteps = 4
  c.data.condition = 'pairs'
  c.objective.reconstruction_weight = 1.0
  return c
