"""Handwritten digits by class, 8x8 grey, T = 2: `digits.py` with G and D told which digit it is.

    python -m ddgan_jax.main --config configs/digits_conditional.py
    python -m ddgan_jax.sample --workdir runs/digits_conditional --label 3
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
  c = digits.get_config()
  c.generator.num_classes = 10
  c.eval.metrics = ('label_accuracy', 'modes')
  return c
