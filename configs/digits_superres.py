"""Super-resolution of digits, 4x4 to 8x8 pixels, T = 2: the smallest run with a condition, without a download.

    ddgan train --config digits_superres
    ddgan sample --workdir runs/digits_superres --condition_from digits.png

Hardware and time: one shared CPU core, 20 minutes (2026-11-27). A classifier reads 98% of the samples of 100 held-out
digits as the true digit (bicubic 80%, true digits 99%; 95% without the reconstruction term); see docs/conditions.md and
`benchmarks/superres.py`.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('digits')
  c.data.condition = 'lowres:2'
  c.objective.reconstruction_weight = 1.0
  c.train.num_samples = 60
  return c
