"""Starts a run from the networks of another (`train.init_from`), such as a diffusion model to fine-tune as a GAN."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax

from ddgan_jax import objectives
from ddgan_jax.config import Config, ConfigError, DiscriminatorConfig, GeneratorConfig, UserError, exported
from ddgan_jax.runs import run
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.train_state import TrainState

# Fields that change neither the parameters nor what they compute.
_FREE = ('dropout', 'label_dropout', 'condition_dropout', 'stddev_group', 'augment')


def check(config: Config) -> None:
  """Raises UserError unless `train.init_from` is empty or a run whose G has the same architecture and inputs."""
  path = os.path.expanduser(config.train.init_from)
  if not path:
    return
  if exported.is_exported(path):
    raise ConfigError(f'train.init_from is {path!r}; use the workdir of a run instead of an exported model')
  try:
    other = run.load_config(path)
  except UserError as error:
    raise ConfigError(f'train.init_from is {path!r}; use the workdir of a run ({error})') from error
  sections = [('generator', config.generator, other.generator)]
  if config.generator.embedding_type == 'positional':  # t is an index, so its meaning depends on the schedule
    sections.append(('diffusion', config.diffusion, other.diffusion))
  for section, here, there in sections:
    if different := _differences(here, there):
      name, mine, its = different[0]
      if name == 'condition_channels':
        section, name = 'data', 'condition' if config.data.condition != other.data.condition else 'pair_channels'
        mine, its = (repr(getattr(each.data, name)) for each in (config, other))
      raise ConfigError(f'train.init_from is {path!r}, but {section}.{name} is {mine}; use {its}, as in that run, or '
                        'use another run')
  if not Checkpoints(path).steps():
    raise ConfigError(f'train.init_from is {path!r}, which has no checkpoint yet; train that run first')


def initialize(
    state: TrainState, config: Config, abstract_state: TrainState, log: Callable[[str], None]
) -> tuple[TrainState, str]:
  """Replaces the networks of the state at step 0 by those of `train.init_from`.

  G and the EMA become the other run's EMA; D becomes its D if both have the same architecture and condition and both or
  neither see x_{t+1}. The optimizer states are newly initialized.

  Args:
    state: the state at step 0.
    config: the run, after `check`.
    abstract_state: shapes and shardings of the state.
    log: receives a sentence for each damaged checkpoint.

  Returns:
    The new state, and a sentence that says what was taken.

  Raises:
    CheckpointError: the other run has no good checkpoint.
  """
  path = os.path.expanduser(config.train.init_from)
  target: dict[str, Any] = {'ema_params': abstract_state.ema_params}
  other = run.load_config(path)
  mine, its = objectives.make(config), objectives.make(other)
  with_d = (mine.has_discriminator and its.has_discriminator and mine.conditions_on_x_tp1 == its.conditions_on_x_tp1
            and config.data.condition == other.data.condition
            and not _differences(config.discriminator, other.discriminator))
  if with_d:
    target['d_params'] = abstract_state.d_params
  found, step = Checkpoints(path).restore_newest_part(target, log)
  g_params = found['ema_params']
  state = state.replace(
      g_params=g_params, ema_params=jax.tree.map(lambda leaf: leaf.copy(), g_params),
      d_params=found.get('d_params', state.d_params))
  networks = 'G and D' if with_d else 'G'
  return state, f'Starts with {networks} of {path} at step {step:,} (train.init_from).'


def _differences(
    here: GeneratorConfig | DiscriminatorConfig, there: GeneratorConfig | DiscriminatorConfig
) -> list[tuple[str, Any, Any]]:
  """(field, value here, value there) of every field that differs and matters."""
  return [(field.name, getattr(here, field.name), getattr(there, field.name)) for field in dataclasses.fields(here)
          if field.name not in _FREE and getattr(here, field.name) != getattr(there, field.name)]
