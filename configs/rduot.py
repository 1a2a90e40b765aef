"""CIFAR-10 with RDUOT (Dao et al., 2023), T = 4: semi-unbalanced optimal transport, robust to outliers in the data.

    ddgan train --config rduot

The networks and optimizer settings are those of `cifar10.py`, as in the paper. For 64x64 images the authors use
`--config.objective.cost_weight=1e-4`, for 256x256 1e-7. Hardware and time: not yet measured.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('cifar10')
  c.method = 'rduot'
  c.objective.update(cost_weight=1e-3, psi='softplus')
  return c
