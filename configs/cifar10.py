"""CIFAR-10, 32x32, T = 4: the published recipe; its network and optimizer settings are the defaults.

    ddgan train --config cifar10

Hardware and time: the authors trained 1,800 epochs on 4 V100 in about 48 hours; not yet measured here.
Expected: FID 3.75, Inception score 9.63, recall 0.57 with 4 network evaluations (as published; their best
checkpoint, at epoch 1,200). That Inception score uses 1 split and TensorFlow 1's bilinear resizing; `evaluate` uses 10
splits (--splits) and the resizing of FID. TFDS downloads CIFAR-10 (163 MiB) on first use.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.base()
  c.data.update(name='cifar10', batch_size=256, flip=True)  # the batch is global: 4 GPUs of 64
  c.train.num_steps = 351_000  # 1,800 epochs of 195 steps, as the original drops the last partial batch
  return c
