"""CIFAR-10 with SIDDM's objective (Xu et al., 2023), T = 4: one training that samples in 1, 2 or 4 evaluations.

    ddgan train --config siddm
    ddgan sample --workdir runs/siddm --num_timesteps 2 --out samples.png

D judges single noisy images, and G also regresses the noisier neighbour. The networks are those of `cifar10.py`; the
authors' D is a U-Net that also denoises. Hardware and time: not yet measured. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.method = 'siddm'
  c.objective.regression_weight = 1.0
  return c
