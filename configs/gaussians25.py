"""25 Gaussians in the plane, T = 4: the paper's toy experiment, in which a one-shot GAN loses modes.

    ddgan train --config gaussians25

G and D are MLPs of three hidden layers of 512, batch 512, 50,000 steps, as in the paper; the R1 weight of 1.0 is ours.
For the one-shot GAN add `--config.diffusion.num_timesteps=1`, for Gaussian diffusion `--config.method=gaussian
--config.diffusion.num_timesteps=500`.

Hardware and time: 5,000 steps in 6 minutes on one CPU core (2026-11-26); all 50,000 have not been run. After 5,000
steps T = 4 has all 25 modes, with 90% of 10,000 points in a mode; the one-shot GAN has 6 modes. With an R1 weight of
0.01, T = 4 has 16 modes after 4,000 steps, with 0.2, 24 after 2,000, and with 1.0, 25 after 1,000. `ddgan evaluate
--workdir runs/gaussians25` counts the modes of a run.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.data.update(name='gaussians25', image_size=1, num_channels=2, batch_size=512, flip=False)
  c.generator.update(kind='mlp', num_channels_dae=512, nz=2, not_use_tanh=True)
  c.discriminator.update(kind='mlp', ngf=512, t_emb_dim=32)
  c.optim.update(lr_g=5e-4, lr_d=1e-3, ema_decay=0.995, r1_gamma=1.0, lazy_reg=1)
  c.train.update(num_steps=50_000, log_every=500, sample_every=5_000, checkpoint_every=5_000, num_samples=5_000)
  c.eval.update(metrics=('modes',), batch_size=5_000)
  return c
