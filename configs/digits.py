"""Handwritten digits, 8x8 grey: the embedded default."""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
  c = cifar10.get_config()
  c.data.update(name='digits', image_size=8, num_channels=1, batch_size=64, flip=False)
  c.diffusion.update(num_timesteps=4, beta_max=10.0)
  c.generator.update(num_channels_dae=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), nz=32, z_emb_dim=64, n_mlp=2)
  c.discriminator.update(ngf=16, t_emb_dim=64)
  c.optim.update(lr_g=5e-4, lr_d=5e-4, ema_decay=0.999, r1_gamma=0.5)
  c.train.update(num_steps=4000, log_every=50, sample_every=500, checkpoint_every=500)
  return c
