"""CIFAR-10 with UFOGen's objective (Xu et al., 2024), T = 4: one training that samples in 1, 2 or 4 evaluations.

    ddgan train --config ufogen
    ddgan sample --workdir runs/ufogen --num_timesteps 1 --out samples.png

D judges single noisy images, and G also regresses the clean image. The networks are those of `cifar10.py`; the authors
fine-tune Stable Diffusion. Hardware and time: not yet measured. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.method = 'ufogen'
  c.objective.regression_weight = 1.0
  return c
