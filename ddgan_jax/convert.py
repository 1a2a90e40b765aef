"""Weights of the PyTorch original in and out; PyTorch is not needed.

    python -m ddgan_jax.convert --from_pytorch netG_1200.pth --config configs/cifar10.py --workdir runs/official
    python -m ddgan_jax.convert --to_pytorch netG.pth --workdir runs/cifar10

In: `netG_<epoch>.pth` (an EMA generator) or `content.pth` (what the original resumes from) becomes a workdir that
`sample`, `evaluate` and `main` accept. The config must be of the file's architecture; its data are what `main` goes on
with. Out: the EMA as the original's test script loads it, or with `--resume_file` a `content.pth`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app
from ddgan_jax.config import Config, ConfigError, UserError

_FROM = flags.DEFINE_string('from_pytorch', None, "The original's netG_*.pth or content.pth, to be read.")
_TO = flags.DEFINE_string('to_pytorch', None, 'The .pth to be written.')
_CONFIG = config_flags.DEFINE_config_file('config', None, 'With --from_pytorch: the recipe.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, "With --from_pytorch a new run's folder, otherwise the run's.")
_STEP = flags.DEFINE_integer('step', None, 'With --to_pytorch: which checkpoint; by default the newest.')
_RESUME_FILE = flags.DEFINE_boolean(
    'resume_file', False, 'With --to_pytorch: write a content.pth, with both networks, both Adam states and the EMA.')
_STEPS_PER_EPOCH = flags.DEFINE_integer(
    'steps_per_epoch', None, 'With --resume_file: by default from data.num_stacks, or from the number of '
    "images in the run's data.json.", lower_bound=1)


def main(argv: list[str]) -> None:
  del argv
  if (_FROM.value is None) == (_TO.value is None):
    raise ConfigError('--from_pytorch FILE or --to_pytorch FILE: must be given, and only one of them')
  if _WORKDIR.value is None:
    raise ConfigError('--workdir: must be given, ' + ('a new folder' if _FROM.value else 'the folder of the run'))
  if _FROM.value:
    _read(_FROM.value, _WORKDIR.value)
  else:
    _write(_TO.value, _WORKDIR.value)


def _read(file: str, workdir: str) -> None:
  if _CONFIG.value is None:
    raise ConfigError('--config: must be given, the recipe whose architecture the file has, such as configs/cifar10.py')
  for name, value in (('step', _STEP.value), ('resume_file', _RESUME_FILE.value or None),
                      ('steps_per_epoch', _STEPS_PER_EPOCH.value)):
    if value is not None:
      raise ConfigError(f'--{name}: belongs to --to_pytorch; what the file is shows by itself')
  if os.path.exists(workdir) and (not os.path.isdir(workdir) or os.listdir(workdir)):
    raise ConfigError(f'--workdir: {workdir!r} exists and is not an empty folder; choose another')
  config = config_lib.from_config_dict(_CONFIG.value)
  _check_method(config)
  # After the flags are checked: these take seconds to import.
  from ddgan_jax import train_state
  from ddgan_jax.interop import pytorch, resume_file, torch_file
  from ddgan_jax.parallel import compilation

  content = torch_file.read_checkpoint(file)
  try:
    for line in _check_architecture(content, config):
      print(line, flush=True)
    compilation.use_persistent_cache()
    if 'netG_dict' in content:
      state, has_ema = resume_file.state_of_content(content, config)
    else:
      state, has_ema = resume_file.state_of_generator(content, config), True
  except pytorch.InteropError as error:
    raise UserError(f'{file}: {error}') from error
  from ddgan_jax.runs import workdir as workdir_lib
  from ddgan_jax.runs.checkpoints import Checkpoints

  checkpoints = Checkpoints(workdir)
  workdir_lib.check_space(workdir, config, checkpoints, train_state.abstract(config, None))
  try:
    checkpoints.save(state)
  except UserError as error:
    raise UserError(f'{file}: {error}') from error
  checkpoints.close()
  workdir_lib.write_description(workdir, config, state)  # last: without it the folder is no run

  size = train_state.count_parameters(state.g_params)
  if 'netG_dict' not in content:
    print(f'{file}: a generator of {size:,} parameters, now G and EMA of {workdir} at step 0. The file holds no '
          f'discriminator: sampling needs none, and main begins with a fresh one (seed {config.seed}) and fresh Adam '
          'states.')
    return
  step = int(state.step)
  print(f'{file}: G of {size:,} parameters, D of {train_state.count_parameters(state.d_params):,}, both Adam states'
        f'{" and the EMA" if has_ema else ""}, now {workdir} at step {step:,}'
        f'{"" if has_ema else "; the file has no EMA, so it starts from G"}.')
  if step >= config.train.num_steps:
    print(f'train.num_steps is {config.train.num_steps:,}: main would find this run finished.')


def _check_architecture(content: dict[str, Any], config: Config) -> list[str]:
  """Refuses another architecture than the config's; returns what is to be said of the rest."""
  from ddgan_jax.interop import architecture, resume_file
  from ddgan_jax.interop.pytorch import InteropError

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
    lines.append(f'Training goes on as the config says, though {"; ".join(clauses)}.')
  return lines


def _write(file: str, workdir: str) -> None:
  if _CONFIG.value is not None:
    raise ConfigError('--config: belongs to --from_pytorch; the run has its own')
  if _STEPS_PER_EPOCH.value is not None and not _RESUME_FILE.value:
    raise ConfigError('--steps_per_epoch: belongs to --resume_file')
  if not os.path.isdir(os.path.dirname(file) or '.'):
    raise ConfigError(f'--to_pytorch: {os.path.dirname(file)!r} is not a folder')
  import ddgan_jax
  from ddgan_jax.interop import pytorch, torch_writer

  run = ddgan_jax.load(workdir, _STEP.value)
  _check_method(run.config)
  if not _RESUME_FILE.value:
    tensors = pytorch.generator_state_dict(run.params, run.config.generator)
    torch_writer.write_checkpoint(file, {f'module.{name}': tensor for name, tensor in tensors.items()})
    print(f'{file}: the EMA generator of {workdir} at step {run.step:,}, {len(tensors)} tensors.')
    return
  import jax

  from ddgan_jax import train_state
  from ddgan_jax.interop import resume_file
  from ddgan_jax.runs.checkpoints import Checkpoints

  steps = _STEPS_PER_EPOCH.value or _steps_per_epoch(workdir, run.config)
  epoch, num_epochs = run.step // steps, -(-run.config.train.num_steps // steps)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  state = Checkpoints(workdir).restore(train_state.abstract(run.config, device), run.step)
  torch_writer.write_checkpoint(file, resume_file.content_of_state(state, run.config, epoch, num_epochs))
  print(f'{file}: G, D, both Adam states and the EMA of {workdir} at step {run.step:,}, epoch {epoch:,} of '
        f'{num_epochs:,}.')


def _check_method(config: Config) -> None:
  if config.method != 'ddgan':
    raise ConfigError(f"method: found {config.method!r}, but the original's networks are of method 'ddgan'")


def _steps_per_epoch(workdir: str, config: Config) -> int:
  """As the original counts, which drops the last partial batch; of the images, or of the stacks made of them."""
  if config.data.num_stacks:
    return max(1, config.data.num_stacks // config.data.batch_size)
  try:
    with open(os.path.join(workdir, 'data.json'), encoding='utf-8') as data:
      return max(1, json.load(data)['images'] // config.data.batch_size)
  except (OSError, ValueError, KeyError, TypeError):
    raise ConfigError(f'--steps_per_epoch: must be given, since {workdir} has no data.json with the number of images '
                      '(main writes it), and the original counts in epochs') from None


if __name__ == '__main__':
  app.run(main)
