"""A classifier of small images, for mode counts and for a Fréchet distance that needs no downloaded weights."""

from __future__ import annotations

import flax.linen as nn
import jax

from ddgan_jax.utils import checks


class Classifier(nn.Module):
  """Three convolutions and two dense layers: `Classifier(10).apply({'params': params}, x)`.

  Attributes:
    num_classes: number of classes.
    num_features: width of the penultimate layer.
  """

  num_classes: int
  num_features: int = 128

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, H, W, C] float32 in [-1, 1] → logits [B, num_classes], features [B, num_features]."""
    checks.floats('x', x, 'B H W C')
    first = 2 if x.shape[1] >= 16 else 1  # small images keep their resolution for one more layer
    for i, (width, stride) in enumerate(((32, first), (64, 2), (64, 1))):
      x = nn.relu(nn.Conv(width, (3, 3), strides=(stride, stride), name=f'conv_{i}')(x))
    features = nn.relu(nn.Dense(self.num_features, name='features')(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes, name='logits')(features), features
