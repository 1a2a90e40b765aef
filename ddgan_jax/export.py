"""A run for other programs: `python -m ddgan_jax.export --workdir runs/digits --out digits.stablehlo`.

`--out` takes the whole sampler, (seed, which images) → uint8 images, with its parameters, compiled for no platform yet:
`launch/sample_exported.py` runs it with jax, numpy and flatbuffers alone. `--safetensors ema.safetensors` takes the EMA
parameters with the config as metadata, which `ddgan_jax.load` reads like a workdir.
"""

from __future__ import annotations

import os

from absl import flags

from ddgan_jax.cli import app
from ddgan_jax.config import ConfigError

_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
_OUT = flags.DEFINE_string('out', None, 'The StableHLO file to write.')
_SAFETENSORS = flags.DEFINE_string('safetensors', None, 'The safetensors file to write.')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; by default the newest.')
_NUM_TIMESTEPS = flags.DEFINE_integer(
    'num_timesteps', None, 'Steps to sample in; only Gaussian diffusion can do with fewer than in training.')
_LABEL = flags.DEFINE_integer(
    'label', None, 'Class label of what --out makes; required if the run was trained with generator.label_dropout=0.')
_PLATFORMS = flags.DEFINE_list('platforms', ['cpu', 'cuda', 'tpu'], 'Where --out is to run.')


def main(argv: list[str]) -> None:
  del argv
  if not _OUT.value and not _SAFETENSORS.value:
    raise ConfigError('--out FILE or --safetensors FILE: at least one must be given')
  if _SAFETENSORS.value and not _SAFETENSORS.value.endswith('.safetensors'):
    raise ConfigError(f'--safetensors: found {_SAFETENSORS.value!r}, must end in .safetensors')
  for name, file in (('out', _OUT.value), ('safetensors', _SAFETENSORS.value)):
    if file and not os.path.isdir(os.path.dirname(file) or '.'):
      raise ConfigError(f'--{name}: {os.path.dirname(file)!r} is not a folder')
  # After the flags are checked: these take seconds to import.
  import ddgan_jax
  from ddgan_jax.interop import safetensors_file, stablehlo
  from ddgan_jax.models import labels
  from ddgan_jax.utils import files

  unknown = sorted(set(_PLATFORMS.value) - set(stablehlo.PLATFORMS))
  if unknown or not _PLATFORMS.value:
    raise ConfigError(f'--platforms: found {",".join(unknown) or "none"}, must be some of '
                      f'{",".join(stablehlo.PLATFORMS)}')
  if _OUT.value:
    labels.check_asked(_LABEL.value, ddgan_jax.load_config(_WORKDIR.value).generator, '--label')
  run = ddgan_jax.load(_WORKDIR.value, _STEP.value, _NUM_TIMESTEPS.value, label=_LABEL.value)
  what = f'step {run.step:,} of {_WORKDIR.value}'
  if _SAFETENSORS.value:
    safetensors_file.write(_SAFETENSORS.value, run.params, run.config, run.step)
    size = os.path.getsize(_SAFETENSORS.value) / 2**20
    print(f'{_SAFETENSORS.value}: the EMA of {what}, {size:,.1f} MiB.', flush=True)
  if _OUT.value:
    exported = stablehlo.export_sampler(run, _PLATFORMS.value).serialize()
    with files.atomic_write(_OUT.value, 'wb') as file:
      file.write(exported)
    print(f'{_OUT.value}: the sampler of {what} in {run.schedule.num_timesteps} steps, for '
          f'{", ".join(_PLATFORMS.value)}, {len(exported) / 2**20:,.1f} MiB.')


if __name__ == '__main__':
  app.run(main)
