"""Colour emoji by class, at 32x32 or 16x16 (after the colon), T = 4.

    ddgan train --config emoji --config.data.path=emoji
    ddgan train --config emoji:16 --config.data.path=emoji
    ddgan sample --workdir runs/emoji_emoji --label all --num 90

`emoji` is the folder that `benchmarks/emoji_folders.py` makes of two npm packages: 3,812 images in nine class folders,
which are, in the order of their labels, activities, animals, flags, food, objects, people, smileys, symbols and travel.
32 pixels are for a GPU, 16 for a CPU. Without the reconstruction term D never learns on so few and diverse images.

Hardware and time: 16x16, 15 minutes on two CPU cores (2026-11-27); a classifier assigns 57% of the samples to the
requested class (held-out emoji: 74%), see benchmarks/emoji_small.md. 32x32: not yet measured. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '32') -> ml_collections.ConfigDict:
  if image_size not in ('16', '32'):
    raise ValueError(f'image size {image_size!r} is not supported; use 16 or 32')
  c = recipes.load('cifar10')
  c.data.update(name='folder', path='', resize='cover', flip=False)
  c.generator.update(num_classes=9, num_channels_dae=64, nz=64, z_emb_dim=128, n_mlp=3)
  c.discriminator.augment = ('color', 'translation', 'cutout')
  c.optim.ema_decay = 0.999
  c.objective.reconstruction_weight = 1.0
  c.train.update(num_steps=15_000, steps_per_call=20, sample_every=3_000, checkpoint_every=3_000, num_samples=90)
  if image_size == '16':
    c.data.update(image_size=16, batch_size=16)
    c.generator.update(num_channels_dae=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,))
    c.discriminator.update(kind='tiny', ngf=16, t_emb_dim=128)
    c.discriminator.augment = ()
    c.optim.update(lr_g=2e-4, lr_d=4e-4, r1_gamma=0.1, lazy_reg=4)
    c.train.update(num_steps=4_000, steps_per_call=1, sample_every=1_000, checkpoint_every=1_000)
  return c
