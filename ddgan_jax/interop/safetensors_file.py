"""Reads and writes the EMA parameters of a run as a safetensors file, whose metadata contains the run's config.

A tensor's name is its path joined by dots, `down_0_block_0.conv_0.kernel`; layouts are Flax's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.config import Config, UserError, exported
from ddgan_jax.utils import files


def write(path: str | os.PathLike, params: Any, config: Config, step: int) -> None:
  """Atomically writes float32 parameters, with the config (as JSON, without paths) and the step as metadata.

  Raises UserError if the file cannot be written.
  """
  path = os.fspath(path)
  tensors = {_name(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
  config = exported.without_paths(config)
  metadata = {'format': 'ddgan_jax', 'config': config_lib.to_json(config), 'step': str(step)}
  try:
    with files.atomic_write(path, 'wb') as file:
      file.write(safetensors.numpy.save(tensors, metadata))
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} cannot be written ({getattr(error, "strerror", None) or error})') from error


def read(path: str | os.PathLike, name: str = '') -> tuple[Any, Config, int]:
  """Reads (nested dict of numpy arrays, config without paths, step) from a file of `write`.

  `name` replaces the path in messages. Raises UserError for another file.
  """
  path = os.fspath(path)
  metadata, tensors = _read(
      path, lambda file: {tensor: file.get_tensor(tensor) for tensor in file.keys()}, name)  # noqa: SIM118
  path = name or path
  config = exported.without_paths(config_lib.from_json(metadata['config'], path))
  if not re.fullmatch('[0-9]{1,15}', metadata['step']):
    raise UserError(f'{path} has the step {metadata["step"]!r} in its metadata; use a file of ddgan export')

  def take(keys, shape):
    tensor = tensors.get(_name(keys))
    if tensor is None or tensor.shape != shape.shape or tensor.dtype != shape.dtype:
      found = 'missing' if tensor is None else f'{tensor.dtype}{list(tensor.shape)}'
      raise UserError(f'{path}: {_name(keys)} is {found}, but its config needs {shape.dtype}{list(shape.shape)}')
    return tensor

  params = jax.tree_util.tree_map_with_path(take, train_state.abstract_state(config, None).ema_params)
  return params, config, int(metadata['step'])


def read_config(path: str | os.PathLike) -> Config:
  """Reads only the run's config. Raises UserError as `read` does."""
  path = os.fspath(path)
  metadata, _ = _read(path, lambda file: None)
  return exported.without_paths(config_lib.from_json(metadata['config'], path))


def _read(path: str, take: Callable[[Any], Any], name: str = '') -> tuple[dict[str, str], Any]:
  """Returns the metadata, and `take(file)` for the open file."""
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      metadata, taken = file.metadata() or {}, take(file)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
        f'{name or path} cannot be read as safetensors ({getattr(error, "strerror", None) or error})') from error
  path = name or path
  if metadata.get('format') != 'ddgan_jax' or not {'config', 'step'} <= set(metadata):
    raise UserError(f'{path} has no config of ddgan_jax in its metadata; use a file of ddgan export --safetensors')
  return metadata, taken


def _name(keys: tuple) -> str:
  return '.'.join(key.key for key in keys)
