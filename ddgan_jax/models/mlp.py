"""G and D as multilayer perceptrons, for points and other data without spatial structure (the paper's 25 Gaussians).

Three hidden layers with LeakyReLU(0.2). The inputs are the flattened image and sinusoids of its values, sinusoids of t,
and z. They are called like `Generator` and `Discriminator`; select them with `kind='mlp'`.

Without the sinusoids an MLP takes thousands of steps to resolve the modes of the 25 Gaussians (Tancik et al., 2020),
and G and D first settle on a broad cloud. Their periods match the grid of the 25 Gaussians; this is prior
knowledge that the paper does not mention.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import DiscriminatorConfig, GeneratorConfig
from ddgan_jax.models import conditions
from ddgan_jax.models.blocks import LabelEmbedding, sinusoids
from ddgan_jax.models.discriminator import check_pair, leaky_relu, score
from ddgan_jax.models.generator import check_inputs
from ddgan_jax.models.initializers import default_init

_HIDDEN_LAYERS = 3
_TIME_FEATURES = 32
_LABEL_FEATURES = 32
_PERIODS = (8.0, 4.0, 2.0, 1.0)  # of the sinusoids of x: from the extent of the 25 Gaussians to half of their spacing


class MlpGenerator(nn.Module):
  """G(x_{t+1}, t, z), with hidden layers of width `num_channels_dae`.

  Attributes:
    config: uses num_channels_dae, nz, conditional, num_classes, prediction and not_use_tanh.
    dtype: dtype of the arithmetic; parameters and the output are float32.
  """

  config: GeneratorConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self, x_tp1: jax.Array, t: jax.Array, z: jax.Array, label: jax.Array | None = None,
      condition: jax.Array | None = None, **training
  ) -> jax.Array:
    """Predicts `config.prediction`; see `Generator.__call__`. `training` is ignored: there is no dropout."""
    del training
    config = self.config
    check_inputs(config, x_tp1, t, z, label, condition)
    inputs = [_value_features(conditions.append(x_tp1, condition, config.condition_channels)), z]
    if config.conditional:
      inputs.append(sinusoids(t, _TIME_FEATURES))
    if config.num_classes:
      inputs.append(LabelEmbedding(
          config.num_classes, config.stack, _LABEL_FEATURES, name='label_embedding')(label, x_tp1.shape[0]))
    h = _hidden_layers(inputs, config.num_channels_dae, self.dtype)
    size = math.prod(x_tp1.shape[1:])
    out = nn.Dense(size, kernel_init=default_init(), dtype=self.dtype, name='dense_out')(h).astype(jnp.float32)
    out = out.reshape(x_tp1.shape)
    return jnp.tanh(out) if config.ends_in_tanh else out


class MlpDiscriminator(nn.Module):
  """D(x_t, t, x_{t+1}), with hidden layers of width `ngf` and no minibatch stddev.

  Attributes:
    config: uses ngf, num_classes and t_emb_dim, the number of sinusoids.
    dtype: dtype of the arithmetic; parameters and the logits are float32.
  """

  config: DiscriminatorConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self, x_t: jax.Array, t: jax.Array, x_tp1: jax.Array, label: jax.Array | None = None,
      condition: jax.Array | None = None
  ) -> jax.Array:
    """Computes the logits [B] float32, high for real, of pairs [B, H, W, C]; see `Discriminator.__call__`."""
    check_pair(x_t, t, x_tp1, label)
    channels = self.config.condition_channels
    conditions.check(condition, x_t, channels)
    inputs = [_value_features(x_t), _value_features(conditions.append(x_tp1, condition, channels)),
              sinusoids(t, self.config.t_emb_dim)]
    h = _hidden_layers(inputs, self.config.ngf, self.dtype).astype(jnp.float32)
    return score(self.config, h, label)


def _value_features(x: jax.Array) -> jax.Array:
  """Flattens x and appends the sinusoids of its values; [B, H, W, C] → [B, 9 H W C]."""
  x = x.reshape(x.shape[0], -1)
  angles = jnp.concatenate([2 * np.pi / period * x for period in _PERIODS], axis=1)
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=1)


def _hidden_layers(inputs: list[jax.Array], width: int, dtype: jnp.dtype) -> jax.Array:
  h = jnp.concatenate(inputs, axis=1).astype(dtype)
  for i in range(_HIDDEN_LAYERS):
    h = leaky_relu(nn.Dense(width, kernel_init=default_init(), dtype=dtype, name=f'dense_{i}')(h))
  return h
