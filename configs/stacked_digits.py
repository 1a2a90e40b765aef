"""Stacked digits, 8x8 RGB, 1,000 modes, T = 4: three random handwritten digits as red, green and blue.

    python -m ddgan_jax.main --config configs/stacked_digits.py

A test of mode coverage that needs no download: label 100a + 10b + c.

Hardware and time: about 0.14 s a step on one CPU core; the whole run has not been timed. Seen on one core (2026-11-23):
756 modes in 4,000 samples after 5,265 steps, 819 modes and KL 0.60 after 7,783 (19 minutes), still improving; real
stacks of held-out digits have 977 and 0.16 at that n (`benchmarks/digits_quality.py --stack 3`).
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
  c = digits.get_config()
  c.data.update(num_channels=3, stack=3)
  c.diffusion.num_timesteps = 4
  c.generator.update(num_channels_dae=24, nz=64)
  c.discriminator.ngf = 12
  c.optim.r1_gamma = 1.0
  c.train.update(num_steps=16_000, sample_every=2_000, checkpoint_every=1_000, eval_every=2_000)
  return c
