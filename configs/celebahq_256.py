"""CelebA-HQ, 256x256, T = 2: the published recipe.

    ddgan train --config celebahq_256

Hardware and time: the authors trained 800 epochs on 8 V100 in about 180 hours; not yet measured here.
Expected: FID 7.64 with 2 network evaluations (as published; their best checkpoint, at epoch 550).
TFDS needs `data256x256.tar`, made by the CelebA-HQ instructions, in its manual folder. Alternatively use an LMDB of raw
256x256 RGB, as the authors did (`--config.data.name=lmdb --config.data.path=…/train.lmdb`), or a folder of PNGs
(`--config.data.name=folder`).
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.data.update(name='celeb_a_hq/256', image_size=256, batch_size=32)
  c.diffusion.num_timesteps = 2
  c.generator.update(num_channels_dae=64, ch_mult=(1, 1, 2, 2, 4, 4), n_mlp=3)
  c.discriminator.kind = 'large'
  c.optim.update(lr_g=2e-4, lr_d=1e-4, r1_gamma=2.0, lazy_reg=10)
  c.train.update(num_steps=749_600, num_samples=16)  # 800 epochs of 937 steps
  return c
