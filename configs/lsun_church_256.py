"""LSUN Church (outdoor), 256x256, T = 4: the published recipe.

    wget http://dl.yf.io/lsun/scenes/church_outdoor_train_lmdb.zip && unzip church_outdoor_train_lmdb.zip
    ddgan train --config lsun_church_256 --config.data.path=church_outdoor_train_lmdb

Hardware and time: the authors trained 500 epochs on 8 V100; not yet measured here.
Expected: FID 5.25, recall 0.41 with 4 network evaluations (as published).
Reads the LMDB as published by LSUN. The shorter side of each image is resized to 256 and the centre is cropped; the
results are stored in one file of 23 GiB in --config.data.cache_dir (not stored with --config.data.cache=none).
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.data.update(name='lmdb', path='church_outdoor_train_lmdb', image_size=256, batch_size=64, resize='crop')
  c.generator.update(num_channels_dae=64, ch_mult=(1, 1, 2, 2, 4, 4), n_mlp=3)
  c.discriminator.kind = 'large'
  c.optim.update(lr_g=1.6e-4, lr_d=1e-4, ema_decay=0.999, r1_gamma=1.0, lazy_reg=10)
  c.train.update(num_steps=985_500, num_samples=16)  # 500 epochs of 1,971 steps (126,227 images)
  return c
