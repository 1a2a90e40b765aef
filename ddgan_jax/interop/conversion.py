"""Checks that a file of the original agrees with a config, and the length of its epochs."""

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
  """Compares the options stored in a file with a config; the conversion checks the tensors.

  Args:
    content: the content of a netG_*.pth or content.pth.
    config: the config of the run.

  Returns:
    Sentences on options that the file does not contain, and on options of the training that differ.

  Raises:
    InteropError: the file has no generator, or options that affect samples differ from the config; names the fields.
  """
  is_resume_file = 'netG_dict' in content
  tensors = content['netG_dict'] if is_resume_file else content
  names = [str(name).removeprefix('module.') for name in tensors] if isinstance(tensors, dict) else []
  if not any(name.startswith('z_transform.') for name in names):
    what = 'a discriminator' if 'end_linear.weight' in names else 'no generator of the original'
    raise InteropError(f'found {what} ({", ".join([*names[:3], "…"])}); use netG_*.pth or the whole content.pth')
  process, training = resume_file.options(content) if is_resume_file else ({}, {})
  if clauses := _differences(process, config):
    raise InteropError(f'options differ from the config: {"; ".join(clauses)}')

  known = {*process.get('generator', {})}
  # In some architectures the tensor names show whether there is an FIR filter.
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
    lines.append('Options from the config, because the file does not contain them: '
                 f'{", ".join(f"{name}={value!r}" for name, value in hidden.items())}.')
  if clauses := _differences(training, config):
    lines.append(f'Training continues with the config, although {"; ".join(clauses)}.')
  return lines


def _differences(sections: dict[str, dict[str, Any]], config: Config) -> list[str]:
  """One clause, with both values, for each field that differs from the config."""
  clauses = []
  for section, fields in sections.items():
    for field, value in fields.items():
      configured = getattr(getattr(config, section), field)
      same = set(value) == set(configured) if field == 'attn_resolutions' else value == configured
      if not same:
        owner = SHARED.get(section, {}).get(field, section)
        clauses.append(f'{owner}.{field} is {value!r} in the file and {configured!r} in the config')
  return clauses


def _names(config: Any) -> list[str]:
  return [name for name, *_ in pytorch.generator_rows(config)]


def steps_per_epoch(workdir: str, config: Config) -> int:
  """Training steps per epoch of images or stacks, without the last partial batch, as the original counts.

  Raises:
    ConfigError: the workdir has no data.json with the number of images.
  """
  if config.data.num_stacks:
    return max(1, config.data.num_stacks // config.data.batch_size)
  try:
    with open(os.path.join(workdir, 'data.json'), encoding='utf-8') as data:
      return max(1, json.load(data)['images'] // config.data.batch_size)
  except (OSError, ValueError, KeyError, TypeError):
    raise ConfigError(f'--steps_per_epoch is required, because the original counts in epochs and {workdir} has no '
                      'data.json with the number of images (ddgan train writes it)') from None
