"""CIFAR-10 with relativistic pairing, R1 and R2 (R3GAN's losses; Huang et al., 2024) on DDGAN's networks, T = 4.

    ddgan train --config relativistic

Both penalties are in every step, with the weight of DDGAN's lazy R1. Hardware and time: not yet measured. Not a
published recipe: R3GAN itself samples in one evaluation, with networks of its own.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.method = 'relativistic'
  c.optim.update(r1_gamma=0.02, lazy_reg=1)
  return c
