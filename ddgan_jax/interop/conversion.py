"""What the original's files and a config must agree on: architecture, and the length of an epoch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.config.checks import SHARED
from ddgan_jax.interop import pytorch, resume_file
from ddgan_jax.interop.pytorch import InteropError


def check_architecture(content: Mapping[str, Any], config: Config) -> list[str]:
  """Compares what a file says of its run with a config; whether the tensors fit is found when they are converted.

  Args:
    content: of a netG_*.pth or a content.pth.
    config: the config that the run will have.

  Returns:
    Sentences on what was taken from the config because the file does not show it, or is trained otherwise from here on.

  Raises:
    InteropError: the file holds no generator, or its options differ from the config; names the fields.
  """
  is_resume_file = 'netG_dict' in content
  tensors = content['netG_dict'] if is_resume_file else content
  names = [str(name).removeprefix('module.') for name in tensors] if isinstance(tensors, dict) else []
  if not any(name.startswith('z_transform.') for name in names):
    what = 'a discriminator' if 'end_linear.weight' in names else 'no generator of the original'
    raise InteropError(f'holds {what} ({", ".join([*names[:3], "…"])}), must hold a generator: netG_*.pth, or the '
                       'whole content.pth')
  process, training = resume_file.options(content) if is_resume_file else ({}, {})
  if clauses := _differences(process, config):
    raise InteropError(f'is not what the config says: {"; ".join(clauses)}')

  known = {*process.get('generator', {})}
  # Whether there is an FIR filter shows in the names of some architectures.
  if _names(config.generator) != _names(dataclasses.replace(config.generator, fir=not config.generator.fir)):
    known.add('fir')
  hidden = {f'generator.{field}': getattr(config.generator, field)
            for field in ('fir', 'fir_kernel', 'skip_rescale', 'centered', 'not_use_tanh') if field not in known}
  if 'image_size' not in known:
    hidden['data.image_size'] = config.data.image_size
  for field, value in vars(config.diffusion).items():
    if field not in process.get('diffusion', {}):
      hidden[f'diffusion.{field}'] = value
  lines = []
  if hidden:
    lines.append('Taken from the config, since the file does not show it: '
                 f'{", ".join(f"{name}={value!r}" for name, value in hidden.items())}.')
  if clauses := _differences(training, config):
    lines.append(f'Training continues as the config says, though {"; ".join(clauses)}.')
  return lines


def _differences(sections: dict[str, dict[str, Any]], config: Config) -> list[str]:
  """A clause with both values for each field, by section, that differs from the config's."""
  clauses = []
  for section, fields in sections.items():
    for field, value in fields.items():
      configured = getattr(getattr(config, section), field)
      same = set(value) == set(configured) if field == 'attn_resolutions' else value == configured
      if not same:
        said_in = SHARED.get(section, {}).get(field, section)
        clauses.append(f'{said_in}.{field} is {value!r} in the file and {configured!r} in the config')
  return clauses


def _names(config: Any) -> list[str]:
  return [name for name, *_ in pytorch.generator_rows(config)]


def steps_per_epoch(workdir: str, config: Config) -> int:
  """Steps of an epoch as the original counts, which drops the last partial batch; of the images, or of their stacks.

  Raises:
    ConfigError: the workdir has no data.json that says how many images there are.
  """
  if config.data.num_stacks:
    return max(1, config.data.num_stacks // config.data.batch_size)
  try:
    with open(os.path.join(workdir, 'data.json'), encoding='utf-8') as data:
      return max(1, json.load(data)['images'] // config.data.batch_size)
  except (OSError, ValueError, KeyError, TypeError):
    raise ConfigError(f'--steps_per_epoch: must be given, since {workdir} has no data.json with the number of images '
                      '(ddgan train writes it), and the original counts in epochs') from None
