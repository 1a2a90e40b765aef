"""Training objectives: what D and G minimise, and how the trained network samples.

`base.Objective` is the interface; each other file is one objective. To add one, write a file here, its line in `make`
and in `config.checks.PREDICTIONS`, a recipe and a test.
"""

from __future__ import annotations

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.objectives import penalties
from ddgan_jax.objectives.augmented_gan import AugmentedGan
from ddgan_jax.objectives.base import Model, Objective, Pairs, Rows, UpdateDraws
from ddgan_jax.objectives.ddgan import Ddgan
from ddgan_jax.objectives.gaussian import Gaussian

__all__ = ['AugmentedGan', 'Ddgan', 'Gaussian', 'UpdateDraws', 'Model', 'Objective', 'Pairs', 'Rows', 'make']


def make(config: Config) -> Objective:
  """Makes the objective named by `config.method`; no other code depends on the name."""
  match config.method:
    case 'ddgan':
      return Ddgan(penalties.r1(config.optim))
    case 'gaussian':
      return Gaussian(bound=config.data.bound)
    case 'augmented_gan':
      return AugmentedGan(penalties.r1(config.optim))
  raise ConfigError(f'method is {config.method!r}, which has no objective; add it to objectives.make')
