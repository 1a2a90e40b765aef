"""Configuration of a run: its fields, their checks, and the errors that users see."""

from ddgan_jax.config.checks import FILE_SOURCES, check_devices
from ddgan_jax.config.errors import ConfigError, UserError
from ddgan_jax.config.schema import (
    Config,
    DataConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    EvalConfig,
    GeneratorConfig,
    ObjectiveConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
    flatten,
    from_config_dict,
    from_json,
    to_dict,
    to_json,
)

__all__ = [
    'FILE_SOURCES', 'Config', 'ConfigError', 'DataConfig', 'DiffusionConfig', 'DiscriminatorConfig', 'EvalConfig',
    'GeneratorConfig', 'ObjectiveConfig', 'OptimConfig', 'ParallelConfig', 'TrainConfig', 'UserError', 'check_devices',
    'flatten', 'from_config_dict', 'from_json', 'to_dict', 'to_json']


def __dir__() -> list[str]:
  return __all__
