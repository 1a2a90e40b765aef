"""LSUN Church (outdoor), 256x256, T = 4: the published recipe.

    python -m ddgan_jax.main --config configs/lsun_church_256.py

Hardware and time: the authors trained 500 epochs on 8 V100; not yet measured here.
Expected: FID 5.25, recall 0.41 with 4 network evaluations (as published).
Images are resized to 256 on their shorter side and centre-cropped. TFDS cannot prepare LSUN with current
TensorFlow (it needs tensorflow_io); a data set prepared elsewhere is read.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
  c = cifar10.get_config()
  c.data.update(name='lsun/church_outdoor', image_size=256, batch_size=64, resize='crop')
  c.generator.update(num_channels_dae=64, ch_mult=(1, 1, 2, 2, 4, 4), n_mlp=3)
  c.discriminator.kind = 'large'
  c.optim.update(lr_g=1.6e-4, lr_d=1e-4, ema_decay=0.999, r1_gamma=1.0, lazy_reg=10)
  c.train.update(num_steps=985_500, num_samples=16)  # 500 epochs of 1,971 steps (126,227 images)
  return c
