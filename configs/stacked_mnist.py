"""StackedMNIST, 32x32, 1,000 modes, T = 4: three MNIST digits as red, green and blue.

    ddgan train --config stacked_mnist

Hardware and time: not yet measured here.
Expected: 1,000 modes, KL 0.071 (as published: 120,000 stacks, 26,000 samples). The paper gives no recipe for this set,
so this is the CIFAR-10 recipe without flips. MNIST's 28x28 digits are centred on a black 32x32 image.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.data.update(name='mnist', resize='pad', flip=False, stack=3, num_stacks=120_000)
  c.train.num_steps = 100_000
  return c
