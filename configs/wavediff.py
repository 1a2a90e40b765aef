"""CIFAR-10 in Haar space (WaveDiff; Phung, Dao and Tran, 2023), T = 4: networks at 16x16 with a reconstruction term.

    ddgan train --config wavediff

A quarter of the pixels, so both networks are faster. The sizes are those of the paper, with two differences: D halves
the image three times instead of twice, and the coefficients are not halved before the diffusion, so the signal has four
times the variance at every level. Hardware and time: not yet measured.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.data.transform = 'haar'
  c.generator.update(ch_mult=(1, 2, 2), attn_resolutions=())
  c.objective.reconstruction_weight = 1.0
  return c
