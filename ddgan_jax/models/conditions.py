"""Image conditions of G, D and the sampler (`data.condition`), and their checks.

A condition is an image [h, w, c], h and w dividing those of x_0. Networks see it enlarged to H x W, as more channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.utils import checks


def append(x: jax.Array, condition: jax.Array | None, channels: int) -> jax.Array:
  """Appends a condition to the channels of x.

  Args:
    x: [B, H, W, C].
    condition: [B, h, w, channels]; None is zeros, no condition.
    channels: with 0, x is returned unchanged.

  Returns:
    [B, H, W, C + channels].
  """
  if not channels:
    return x
  if condition is None:
    condition = jnp.zeros((*x.shape[:3], channels), x.dtype)
  return jnp.concatenate([x, enlarge(condition, x.shape[1]).astype(x.dtype)], axis=-1)


def enlarge(condition: jax.Array, size: int) -> jax.Array:
  """Enlarges [B, h, w, c] to [B, size, size, c], bilinearly."""
  if condition.shape[1] == size:
    return condition
  return jax.image.resize(condition, (condition.shape[0], size, size, condition.shape[3]), 'linear')


def check(condition: jax.Array | None, x: jax.Array, channels: int) -> None:
  """Raises ValueError or TypeError unless `condition` is None or fits a batch of images x and a network."""
  if condition is None:
    return
  if not channels:
    raise ValueError('condition is given; omit it, because the network has no condition')
  checks.floats('condition', condition, 'B h w c', B=x.shape[0], c=channels)
  height, width = condition.shape[1:3]
  if x.shape[1] % height or x.shape[2] % width:
    raise ValueError(f'condition is {height}x{width}; use a size that divides {x.shape[1]}x{x.shape[2]}')


def is_required(config: Config) -> bool:
  """Whether sampling requires a condition: the run was trained with one, and with `condition_dropout=0`."""
  return config.data.condition_shape is not None and not config.generator.condition_dropout


def timing_condition(config: Config) -> np.ndarray | None:
  """The condition to use for timing: None, or zeros if a condition is required."""
  return np.zeros(config.data.condition_shape, np.float32) if is_required(config) else None


def check_condition(condition: np.ndarray | jax.Array | None, config: Config, name: str = 'condition') -> None:
  """Raises ConfigError for a condition that a run cannot sample.

  Args:
    condition: an array [..., h, w, c], or None.
    config: the run.
    name: name of the argument or flag, for the message.
  """
  shape = config.data.condition_shape
  if condition is None:
    if is_required(config):
      raise ConfigError(f'{name} is none; use an array of {_listed(shape)} with Run.sample or '
                        'train_state.make_sampler, because the run was trained with '
                        f'data.condition={config.data.condition!r} and generator.condition_dropout=0')
    return
  if shape is None:
    raise ConfigError(f"{name} is given; omit it, because the run was trained with data.condition='none'")
  if condition.shape[-3:] != shape:
    raise ConfigError(f'{name} has shape {_listed(condition.shape)}; use {_listed(shape)} for data.condition='
                      f'{config.data.condition!r}, or one such array per image')


def _listed(shape: tuple[int, ...]) -> str:
  return f'[{", ".join(map(str, shape))}]'
