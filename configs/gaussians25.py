"""25 Gaussians."""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
  c = cifar10.get_config()
  c.data.update(name='gaussians25', image_size=1, num_channels=2, batch_size=512, flip=False)
  c.generator.update(kind='mlp', num_channels_dae=512, nz=2)
  c.discriminator.update(kind='mlp', ngf=512, t_emb_dim=32)
  c.optim.update(lr_g=1e-4, lr_d=1e-4, ema_decay=0.999, r1_gamma=0.05, lazy_reg=1)
  c.train.update(num_steps=50_000, log_every=500, sample_every=5_000, checkpoint_every=5_000, num_samples=5_000)
  return c
