"""A reconstruction term for G, which `ddgan` and its successors can add (WaveDiff; Phung, Dao and Tran, 2023).

    L_G += weight · mean |x_0_pred - x_0|

in the space of the networks, pixels or Haar coefficients. With the schedule `sigmoid` the weight falls during training,
weight · (1 - sigmoid(s)) with s from -6 to 6 (LDDGAN; Trinh and Hamagami, 2024).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ddgan_jax.models import haar
from ddgan_jax.objectives.base import Rows


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """The L1 distance of the predicted to the real image.

  Attributes:
    weight: its weight, at step 0 if it decays; 0 disables the term.
    decay_steps: length of the training, over which the weight decays; None for a constant weight.
    in_haar_space: whether to compare Haar coefficients / 2, as in WaveDiff, instead of pixels.
  """

  weight: float
  decay_steps: int | None = None
  in_haar_space: bool = False

  def __call__(self, x_0_pred: jax.Array, rows: Rows) -> jax.Array:
    """The weighted distance, a mean over rows, of `x_0_pred` [B, H, W, C] to `rows.x_0`."""
    difference = x_0_pred - rows.x_0
    if self.in_haar_space:
      difference = haar.forward(difference) / 2
    weight = self.weight
    if self.decay_steps:
      weight *= jax.nn.sigmoid(6 - 12 * rows.step / self.decay_steps)
    return weight * jnp.abs(difference).mean()


NO_RECONSTRUCTION = Reconstruction(0.0)
