"""Handwritten digits by class, 8x8 grey, T = 2: `digits.py` with G and D conditioned on the digit.

    ddgan train --config digits_conditional
    ddgan sample --workdir runs/digits_conditional --label 3

Hardware and time: 8,000 steps in 24 minutes on one shared CPU core (2026-11-25).
Measured: a classifier with 98.7% accuracy on held-out digits (n = 150) assigns 99.2% of 10,000 samples to the requested
class.
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('digits')
  c.generator.num_classes = 10
  c.eval.metrics = ('label_accuracy', 'modes')
  return c
