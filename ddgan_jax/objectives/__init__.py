"""Training objectives: what D and G minimise, and how the trained network samples.

`base.Objective` is the interface; each other file is one objective. To add one, write a file here, its line in `make`
and in `config.checks.PREDICTIONS`, a recipe and a test.
"""

from __future__ import annotations

import dataclasses

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.objectives import penalties
from ddgan_jax.objectives.augmented_gan import AugmentedGan
from ddgan_jax.objectives.base import Model, Objective, Pairs, Rows, UpdateDraws
from ddgan_jax.objectives.ddgan import Ddgan
from ddgan_jax.objectives.gaussian import Gaussian
from ddgan_jax.objectives.rduot import Rduot
from ddgan_jax.objectives.reconstruction import Reconstruction
from ddgan_jax.objectives.relativistic import Relativistic
from ddgan_jax.objectives.siddm import Siddm
from ddgan_jax.objectives.ufogen import Ufogen

__all__ = [
    'AugmentedGan', 'Ddgan', 'Gaussian', 'Rduot', 'Relativistic', 'Siddm', 'Ufogen', 'UpdateDraws', 'Model',
    'Objective', 'Pairs', 'Rows', 'make']


def make(config: Config) -> Objective:
  """Makes the objective named by `config.method`; no other code depends on the name."""
  settings = config.objective
  r1 = penalties.r1(config.optim, config.schedule_steps)
  reconstruction = Reconstruction(
      settings.reconstruction_weight,
      config.train.num_steps if settings.reconstruction_schedule == 'sigmoid' else None,
      in_haar_space=config.data.transform == 'haar')
  match config.method:
    case 'ddgan':
      return Ddgan(r1, reconstruction)
    case 'gaussian':
      return Gaussian(bound=config.data.bound)
    case 'augmented_gan':
      return AugmentedGan(r1, reconstruction)
    case 'relativistic':
      return Relativistic(dataclasses.replace(r1, fake=True), reconstruction)
    case 'rduot':
      return Rduot(r1, reconstruction, settings.cost_weight, settings.psi)
    case 'ufogen':
      return Ufogen(r1, reconstruction, settings.regression_weight)
    case 'siddm':
      return Siddm(r1, reconstruction, settings.regression_weight)
  raise ConfigError(f'method is {config.method!r}, which has no objective; add it to objectives.make')
