"""The time-dependent discriminator D(x_t, t, x_{t+1}) (paper, section 3.2 and appendix C)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddgan_jax.config import ConfigError, DiscriminatorConfig
from ddgan_jax.models import conditions, haar, resample
from ddgan_jax.models.blocks import INV_SQRT_2, Conv, LabelEmbedding, sinusoids
from ddgan_jax.models.initializers import default_init
from ddgan_jax.utils import checks

_FIR_KERNEL = (1.0, 3.0, 3.0, 1.0)

# Width of each block in multiples of ngf, and whether it halves H and W.
BLOCKS = {
    'small': ((2, False), (4, True), (8, True), (8, True)),
    'large': ((4, True), (8, True), (8, True), (8, True), (8, True), (8, True)),
    'tiny': ((2, False), (4, True), (8, False)),
}


def leaky_relu(x: jax.Array) -> jax.Array:
  """LeakyReLU(0.2) with slope 0.2 at 0, as in PyTorch; jax.nn.leaky_relu has slope 1 there."""
  return jnp.where(x > 0, x, 0.2 * x)


class Discriminator(nn.Module):
  """Classifies x_t as a real or a generated less noisy neighbour of x_{t+1}.

  `Discriminator(config).apply({'params': params}, x_t, t, x_tp1)`.

  Attributes:
    config: the architecture.
    dtype: dtype of the arithmetic; parameters, the final sum over pixels and the logits are float32.
    remat: the backward pass recomputes each block, so that only its input stays in memory.
  """

  config: DiscriminatorConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
      self, x_t: jax.Array, t: jax.Array, x_tp1: jax.Array, label: jax.Array | None = None,
      condition: jax.Array | None = None
  ) -> jax.Array:
    """Computes the logits of a batch of pairs.

    Args:
      x_t: [B, H, W, C] float32, the less noisy neighbour, real or generated.
      t: [B] int32 in 0 … T-1, its index.
      x_tp1: [B, H, W, C] float32, the noisier neighbour.
      label: [B] int32, used if `config.num_classes` > 0; `labels.NONE` or None means no label.
      condition: as for the generator.

    Returns:
      [B] float32 logits, high for real.

    Raises:
      ConfigError: B is not a multiple of `stddev_group`.
      ValueError, TypeError: an argument has the wrong shape or dtype; the message names it.
    """
    check_pair(x_t, t, x_tp1, label)
    config = self.config
    conditions.check(condition, x_t, config.condition_channels)
    widths_and_halvings = BLOCKS[config.kind]

    def dense(features, name):
      return nn.Dense(features, kernel_init=default_init(), dtype=self.dtype, name=name)

    temb = leaky_relu(dense(config.t_emb_dim, 'time_dense_0')(sinusoids(t, config.t_emb_dim)))
    temb = leaky_relu(dense(config.t_emb_dim, 'time_dense_1')(temb))

    h = conditions.append(jnp.concatenate([x_t, x_tp1], axis=-1), condition, config.condition_channels)
    h = (haar.forward(h) if config.transform == 'haar' else h).astype(self.dtype)
    h = Conv(2 * config.ngf, 1, padding='VALID', dtype=self.dtype, name='conv_in')(h)
    block_class = nn.remat(DiscriminatorBlock) if self.remat else DiscriminatorBlock
    for i, (multiple, halve) in enumerate(widths_and_halvings):
      h = block_class(multiple * config.ngf, halve, self.dtype, name=f'block_{i}')(h, temb)

    h = minibatch_stddev(h, config.stddev_group)
    h = Conv(
        8 * config.ngf, init_scale=0.0 if config.kind == 'small' else 1.0, dtype=self.dtype, name='conv_out')(h)
    h = leaky_relu(h).astype(jnp.float32).sum((1, 2))
    return score(config, h, label)


def check_pair(x_t: jax.Array, t: jax.Array, x_tp1: jax.Array, label: jax.Array | None) -> None:
  """Raises ValueError or TypeError for arguments of the wrong shape or dtype."""
  checks.floats('x_t', x_t, 'B H W C')
  batch, height, width, channels = x_t.shape
  checks.floats('x_tp1', x_tp1, 'B H W C', B=batch, H=height, W=width, C=channels)
  checks.numbers('t', t, 'B', B=batch)
  if label is not None:
    checks.integers('label', label, 'B', B=batch)


def score(config: DiscriminatorConfig, h: jax.Array, label: jax.Array | None) -> jax.Array:
  """The last layer; with classes, a projection discriminator (Miyato and Koyama, 2018). Call in a compact module.

      logit = <w, h> + b  or  <w, h> + b + <V[label], h>  (their equation 3); V has one more row for no label

  Args:
    config: uses num_classes and stack.
    h: [B, F] float32, the features.
    label: [B] int32, or None.

  Returns:
    [B] float32.
  """
  logits = nn.Dense(1, kernel_init=default_init(), name='dense_out')(h)[:, 0]
  if config.num_classes:
    label_vectors = LabelEmbedding(
        config.num_classes, config.stack, h.shape[1], name='label_embedding')(label, h.shape[0])
    logits += (label_vectors * h).sum(1)
  return logits


class DiscriminatorBlock(nn.Module):
  """A residual block without normalisation; `halve` halves H and W of both branches by FIR."""

  features: int
  halve: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
    h = Conv(self.features, dtype=self.dtype, name='conv_0')(leaky_relu(x))
    time = nn.Dense(self.features, kernel_init=default_init(), dtype=self.dtype, name='time_dense')(temb)
    h = leaky_relu(h + time[:, None, None, :])
    if self.halve:
      h = resample.fir_down(h, _FIR_KERNEL)
      x = resample.fir_down(x, _FIR_KERNEL)
    h = Conv(self.features, init_scale=0.0, scale=INV_SQRT_2, dtype=self.dtype, name='conv_1')(h)
    x = Conv(
        self.features, 1, padding='VALID', use_bias=False, scale=INV_SQRT_2, dtype=self.dtype, name='shortcut')(x)
    return h + x


def minibatch_stddev(x: jax.Array, group: int) -> jax.Array:
  """Appends the minibatch standard deviation as one channel (Karras et al., 2018, section 3).

  A group is `group` *adjacent* rows, so that a batch sharded in blocks needs no communication. Rows are independent,
  so the statistic is the same as that of the original's strided groups.

  Args:
    x: [B, H, W, C].
    group: rows per group; a smaller batch is one group.

  Returns:
    [B, H, W, C + 1]: sqrt(variance over the group + 1e-8), averaged over H, W and C.

  Raises:
    ConfigError: B is not a multiple of the group.
  """
  batch, height, width, _ = x.shape
  group = min(group, batch)
  if batch % group:
    raise ConfigError(f'data.batch_size is {batch}; use a multiple of {group} (discriminator.stddev_group)')
  grouped = x.astype(jnp.float32).reshape(batch // group, group, *x.shape[1:])
  stddev = jnp.sqrt(grouped.var(axis=1) + 1e-8).mean((1, 2, 3))
  channel = jnp.broadcast_to(jnp.repeat(stddev, group)[:, None, None, None], (batch, height, width, 1))
  return jnp.concatenate([x, channel.astype(x.dtype)], axis=-1)
