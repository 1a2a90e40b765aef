"""Super-resolution of digits, 4x4 to 8x8 pixels, T = 2: the smallest run with a condition, without a download.

    ddgan train --config digits_superres
    ddgan sample --workdir runs/digits_superres --condition_from digits.png

Hardware and time: not yet measured.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('digits')
  c.data.condition = 'lowres:2'
  c.train.num_samples = 60
  return c
