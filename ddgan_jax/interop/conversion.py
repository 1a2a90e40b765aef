"""What the original's files and a config must agree on: architecture, and the length of an epoch."""

from __future__ import annotations

import json
import os
from typing import Any

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.interop import architecture, resume_file
from ddgan_jax.interop.pytorch import InteropError


def check_architecture(content: dict[str, Any], config: Config) -> list[str]:
  """Compares what a file shows of its networks with a config.

  Args:
    content: of a netG_*.pth or a content.pth.
    config: the config that the run will have.

  Returns:
    Sentences on what was taken from the config because the file does not show it, or is trained otherwise from here on.

  Raises:
    InteropError: the file is of another architecture; names the fields.
  """
  is_resume_file = 'netG_dict' in content
  tensors = content['netG_dict'] if is_resume_file else content
  if not isinstance(tensors, dict) or not all(hasattr(tensor, 'shape') for tensor in tensors.values()):
    raise InteropError(f'holds {", ".join(map(str, [*content][:5]))}, must hold the tensors of a generator '
                       '(netG_*.pth) or netG_dict (content.pth)')
  shown = architecture.generator_fields(tensors, config.generator)
  clauses = architecture.differences('generator', shown, config.generator)
  process, training = resume_file.options(content) if is_resume_file else ({}, {})
  for section, fields in process.items():
    clauses += architecture.differences(section, fields, getattr(config, section))
  if is_resume_file and isinstance(content.get('netD_dict'), dict):
    clauses += architecture.differences(
        'discriminator', architecture.discriminator_fields(content['netD_dict']), config.discriminator)
  if clauses:
    raise InteropError(f'is not what the config says: {"; ".join(dict.fromkeys(clauses))}')

  known = {*shown, *process.get('generator', {})}
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
  clauses = [clause for section, fields in training.items()
             for clause in architecture.differences(section, fields, getattr(config, section))]
  if clauses:
    lines.append(f'Training continues as the config says, though {"; ".join(clauses)}.')
  return lines


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
