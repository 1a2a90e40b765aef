"""Differentiable augmentation of what D sees, for data sets of a few thousand images.

    D(A(x_t), t, A(x_{t+1}))      with one random A per row, the same for its real and its fake pair

A is differentiable, so G learns through it, and because D only sees augmented images, real or fake, G does not learn to
generate them (Zhao et al., 2020, "Differentiable augmentation for data-efficient GAN training", equations 4 to 6). D's
gradient penalty is taken with respect to the image before A.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

NUM_UNIFORMS = 7  # random numbers per row


def augment(images: jax.Array, uniforms: jax.Array, policy: Sequence[str]) -> jax.Array:
  """Applies the transformations of `policy`, in this order, to each image.

  `color` draws brightness (an offset in ±1/2), saturation (a factor in 0 … 2) and contrast (a factor in 1/2 … 3/2);
  `translation` shifts by up to 1/8 of the image in both directions and fills with 0; `cutout` sets a square of half the
  image's height to 0, whose centre is uniform in the image.

  Args:
    images: [B, H, H, C] float32.
    uniforms: [B, 7] float32 in [0, 1): brightness, saturation, contrast, two of the shift, two of the square.
    policy: some of `config.checks.AUGMENTATIONS`.

  Returns:
    Like `images`.
  """
  size = images.shape[1]
  if 'color' in policy:
    brightness, saturation, contrast = (uniforms[:, i, None, None, None] for i in range(3))
    images = images + (brightness - 0.5)
    images = _scale(images, 2 * saturation, axes=(3,))
    images = _scale(images, contrast + 0.5, axes=(1, 2, 3))
  if 'translation' in policy:
    reach = size // 8
    shifts = jnp.floor(uniforms[:, 3:5] * (2 * reach + 1)).astype(jnp.int32) - reach
    # Products with 0-1 matrices are exact at the highest precision; a gather's gradient is a scatter, slow on TPUs.
    rows, columns = (jax.vmap(lambda by: jnp.eye(size, k=by))(shifts[:, i]) for i in range(2))
    images = jnp.einsum('bij,bjkc,blk->bilc', rows, images, columns, precision='highest')
  if 'cutout' in policy:
    centre = jnp.floor(uniforms[:, 5:7] * size)[:, :, None]  # [B, 2, 1]
    inside = jnp.abs(jnp.arange(size) + 0.5 - centre) < size / 4  # [B, 2, H]
    images = jnp.where((inside[:, 0, :, None] & inside[:, 1, None, :])[..., None], 0, images)
  return images


def _scale(images: jax.Array, factor: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  mean = images.mean(axes, keepdims=True)
  return (images - mean) * factor + mean
