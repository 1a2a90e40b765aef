"""The generator G(x_{t+1}, t, z) → x_0_pred: an NCSN++ U-Net with a mapping network for z (paper, section 4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import diffusion
from ddgan_jax.config import GeneratorConfig
from ddgan_jax.models import blocks, conditions, functional, haar
from ddgan_jax.models.blocks import Conv
from ddgan_jax.models.initializers import default_init
from ddgan_jax.models.norms import GroupNormSilu
from ddgan_jax.utils import checks


class Generator(nn.Module):
  """Predicts the clean image from the noisier neighbour, the time index and a latent.

  `Generator(config).apply({'params': params}, x_tp1, t, z)`; for training with dropout, add
  `deterministic=False, rngs={'dropout': key}`.

  Attributes:
    config: the architecture.
    dtype: dtype of the arithmetic; parameters and the output are float32.
    remat: the backward pass recomputes each residual block, so that only its input stays in memory.
  """

  config: GeneratorConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
      self, x_tp1: jax.Array, t: jax.Array, z: jax.Array, label: jax.Array | None = None,
      condition: jax.Array | None = None, *, deterministic: bool = True, row_indices: jax.Array | None = None
  ) -> jax.Array:
    """Predicts x_0, or the noise or x_t if `config.prediction` is set to them.

    Args:
      x_tp1: [B, H, W, C] float32, the noisier neighbour.
      t: [B] int32 in 0 … T-1, the index of the less noisy neighbour; with `embedding_type='fourier'`, the noise level
        sigma_bar[t+1] instead, positive float32 (see `generator_fn`).
      z: [B, nz] float32, standard normal.
      label: [B] int32, used if `config.num_classes` > 0; `labels.NONE` or None means no label.
      condition: [B, h, w, c] float32 in [-1, 1] with c = `config.condition_channels` > 0 and h, w that divide H, W;
        zeros or None mean no condition.
      deterministic: disables dropout.
      row_indices: [B] int32, indices in the global batch, which seed the dropout; by default 0 … B-1.

    Returns:
      The prediction, [B, H, W, C] float32; in [-1, 1] if `config.ends_in_tanh`. With `config.transform='haar'` the
      tanh bounds the coefficients instead, to [-2, 2], as those of an image in [-1, 1].

    Raises:
      ValueError, TypeError: an argument has the wrong shape or dtype; the message names it.
    """
    config = self.config
    check_inputs(config, x_tp1, t, z, label, condition)
    widths = [config.num_channels_dae * mult for mult in config.ch_mult]
    last = len(widths) - 1
    resampling_block = config.resblock_type != 'ddpm'
    scale = blocks.residual_scale(config)

    zemb = self._latent_mapping(z) if config.nz else None
    if config.num_classes:
      # The class embedding is added before the adaptive norms, as in Dhariwal and Nichol (2021).
      label_vectors = blocks.LabelEmbedding(
          config.num_classes, config.stack, config.z_emb_dim, name='label_embedding')(label, x_tp1.shape[0])
      zemb = label_vectors if zemb is None else zemb + label_vectors
    temb = nn.silu(self._time_embedding(t)) if config.conditional else None

    if deterministic:
      row_indices = None
    elif row_indices is None:
      row_indices = jnp.arange(z.shape[0])
    # nn.remat would rename the parameters of unnamed modules; every block here has a name.
    block_class = nn.remat(blocks.ResidualBlock) if self.remat else blocks.ResidualBlock

    def block(name, features, *parts, direction=None):
      return block_class(features, config, direction, self.dtype, name=name)(parts, temb, zemb, row_indices)

    def attention(name, h):
      return blocks.SelfAttention(config, self.dtype, name=name)(h)

    is_haar = config.transform == 'haar'
    channels = 4 * config.num_channels if is_haar else config.num_channels
    x = x_tp1 if config.centered else 2 * x_tp1 - 1
    x = conditions.append(x, condition, config.condition_channels)
    x = (haar.forward(x) if is_haar else x).astype(self.dtype)
    pyramid = x
    h = Conv(config.num_channels_dae, dtype=self.dtype, name='conv_in')(x)
    skips = [h]

    for i, features in enumerate(widths):
      for j in range(config.num_res_blocks):
        h = block(f'down_{i}_block_{j}', features, h)
        if config.resolutions[i] in config.attn_resolutions:
          h = attention(f'down_{i}_attention_{j}', h)
        skips.append(h)
      if i < last:
        if resampling_block:
          h = block(f'down_{i}_resample', h.shape[-1], h, direction='down')
        else:
          conv_features = h.shape[-1] if config.resamp_with_conv else None
          h = blocks.Downsample(config, conv_features, dtype=self.dtype, name=f'down_{i}_resample')(h)
        if config.progressive_input == 'residual':
          pyramid = blocks.Downsample(config, h.shape[-1], scale, self.dtype, name=f'down_{i}_pyramid')(pyramid)
          h = pyramid = pyramid + scale * h
        elif config.progressive_input == 'input_skip':
          pyramid = blocks.Downsample(config)(pyramid)
          joined = Conv(h.shape[-1], 1, padding='VALID', dtype=self.dtype, name=f'down_{i}_pyramid')(pyramid)
          h = joined + h if config.progressive_combine == 'sum' else jnp.concatenate([joined, h], axis=-1)
        skips.append(h)

    h = block('middle_block_0', h.shape[-1], h)
    h = attention('middle_attention', h)
    h = block('middle_block_1', h.shape[-1], h)

    for i, features in reversed(list(enumerate(widths))):
      for j in range(config.num_res_blocks + 1):
        h = block(f'up_{i}_block_{j}', features, h, skips.pop())
      if config.resolutions[i] in config.attn_resolutions:
        h = attention(f'up_{i}_attention', h)
      if config.progressive == 'output_skip':
        image = GroupNormSilu(name=f'up_{i}_pyramid_norm')((h,))
        image = Conv(channels, init_scale=0.0, dtype=self.dtype, name=f'up_{i}_pyramid')(image)
        pyramid = image if i == last else blocks.Upsample(config)(pyramid) + image
      elif config.progressive == 'residual':
        if i == last:
          pyramid = GroupNormSilu(name=f'up_{i}_pyramid_norm')((h,))
          pyramid = Conv(h.shape[-1], dtype=self.dtype, name=f'up_{i}_pyramid')(pyramid)
        else:
          pyramid = blocks.Upsample(config, h.shape[-1], scale, self.dtype, name=f'up_{i}_pyramid')(pyramid)
          h = pyramid = pyramid + scale * h
      if i > 0:
        if resampling_block:
          h = block(f'up_{i}_resample', h.shape[-1], h, direction='up')
        else:
          conv_features = h.shape[-1] if config.resamp_with_conv else None
          h = blocks.Upsample(config, conv_features, dtype=self.dtype, name=f'up_{i}_resample')(h)

    if config.progressive == 'output_skip':
      image = pyramid
    else:
      image = GroupNormSilu(name='norm_out')((h,))
      image = Conv(channels, init_scale=0.0, dtype=self.dtype, name='conv_out')(image)
    image = image.astype(jnp.float32)
    image = jnp.tanh(image) if config.ends_in_tanh else image
    if not is_haar:
      return image
    return haar.inverse(2 * image if config.ends_in_tanh else image)

  def _latent_mapping(self, z: jax.Array) -> jax.Array:
    """Maps z to the style vector, [B, nz] → [B, z_emb_dim]: unit mean square, then 1 + n_mlp dense layers."""
    config = self.config
    h = z * jax.lax.rsqrt(jnp.mean(z * z, axis=1, keepdims=True) + 1e-8)
    for i in range(config.n_mlp + 1):
      h = nn.silu(nn.Dense(
          config.z_emb_dim, kernel_init=default_init(), dtype=self.dtype, name=f'latent_dense_{i}')(h))
    return h

  def _time_embedding(self, t: jax.Array) -> jax.Array:
    """Embeds t, [B] → [B, 4nf]."""
    width = self.config.num_channels_dae
    if self.config.embedding_type == 'fourier':
      # A parameter, so that it is saved and imported; stop_gradient keeps it fixed.
      frequencies = jax.lax.stop_gradient(
          self.param('fourier', nn.initializers.normal(self.config.fourier_scale), (width,)))
      angles = 2 * np.pi * jnp.log(t.astype(jnp.float32))[:, None] * frequencies
      h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    else:
      h = blocks.sinusoids(t, width)
    h = nn.Dense(4 * width, kernel_init=default_init(), dtype=self.dtype, name='time_dense_0')(h)
    return nn.Dense(4 * width, kernel_init=default_init(), dtype=self.dtype, name='time_dense_1')(nn.silu(h))


def check_inputs(
    config: GeneratorConfig, x_tp1: jax.Array, t: jax.Array, z: jax.Array, label: jax.Array | None,
    condition: jax.Array | None = None) -> None:
  """Raises ValueError or TypeError for arguments of the wrong shape or dtype for this config."""
  size = config.image_size
  checks.floats('x_tp1', x_tp1, 'B H W C', H=size, W=size, C=config.num_channels)
  checks.numbers('t', t, 'B', B=x_tp1.shape[0])
  checks.floats('z', z, 'B nz', B=x_tp1.shape[0], nz=config.nz)
  if label is not None:
    checks.integers('label', label, 'B', B=x_tp1.shape[0])
  conditions.check(condition, x_tp1, config.condition_channels)


def output_fn(generator, params, schedule, **apply_kwargs):
  """Makes the function (x_tp1, t, z) → network output: x_0, the noise or x_t. For the arguments see `generator_fn`.

  A `fourier` generator takes the noise level sigma_bar[t+1] of x_{t+1} instead of t.
  """

  def apply(x_tp1, t, z):
    time = jnp.asarray(schedule.sigma_bar)[t + 1] if generator.config.embedding_type == 'fourier' else t
    return functional.apply(generator, params, x_tp1, time, z, **apply_kwargs)

  return apply


def generator_fn(generator, params, schedule, **apply_kwargs):
  """Makes the function (x_tp1, t, z) → x_0_pred for `sampling` and the losses; a predicted noise is converted to x_0.

  Args:
    generator: a `Generator` or `MlpGenerator`.
    params: its parameters, such as `state.g_params` or `state.ema_params`.
    schedule: a `diffusion.Schedule`, for sigma_bar.
    **apply_kwargs: arguments of `generator.apply`, such as `label`, or `deterministic=False, rngs={'dropout': key}`.

  Returns:
    (x_tp1 [B, H, W, C], t [B] int32, z [B, nz]) → x_0_pred [B, H, W, C] float32. With prediction='x_t' it returns x_t,
    for use with `diffusion.identity_posterior`.
  """
  output = output_fn(generator, params, schedule, **apply_kwargs)
  if generator.config.prediction != 'noise':
    return output
  return lambda x_tp1, t, z: diffusion.x_0_from_noise(schedule, x_tp1, t, output(x_tp1, t, z))
