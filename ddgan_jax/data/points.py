"""`gaussians25`: points of 25 Gaussians on a grid, the paper's toy data set, on which a one-shot GAN loses modes.

Centres {-4, -2, 0, 2, 4}², standard deviation 0.05, as 1x1 images with two channels, not quantised. They are not
scaled to [-1, 1]: at that scale the first of four diffusion steps would add more noise than the distance between two
modes, and the last evaluation of G would have to choose among all modes.
"""

from __future__ import annotations

import numpy as np

CENTRES = np.stack(np.meshgrid(*2 * [np.arange(-4.0, 5.0, 2.0)], indexing='ij'), axis=-1).reshape(25, 2)
STANDARD_DEVIATION = 0.05


def draw(num: int = 100_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Draws points [num, 1, 1, 2] float32, uniformly over the modes, and the index of each point's centre [num] int32.

  The data set uses seed 0, whatever the seed of the run.
  """
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, len(CENTRES), num)
  points = CENTRES[labels] + STANDARD_DEVIATION * rng.standard_normal((num, 2))
  return points.astype(np.float32).reshape(num, 1, 1, 2), labels.astype(np.int32)
