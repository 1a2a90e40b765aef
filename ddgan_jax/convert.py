"""Import and export checkpoints of the PyTorch original; PyTorch is not needed.

    ddgan convert --from_pytorch netG_1200.pth --config cifar10 --workdir runs/official
    ddgan convert --to_pytorch netG.pth --workdir runs/cifar10

Import: `netG_<epoch>.pth` (an EMA generator) or `content.pth` (the original's resume file) becomes a workdir for
`ddgan sample`, `evaluate` and `train`. The config must have the architecture of the file; `train` uses its data.
Export: the EMA for the original's test script or, with `--resume_file`, a `content.pth`.
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options
from ddgan_jax.config import Config, ConfigError, UserError, exported


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_convert, _define_flags, __doc__, argv)


def _define_flags(define: options.Definer) -> None:
  define.string('from_pytorch', None, "The original's netG_*.pth or content.pth to import.")
  define.string('to_pytorch', None, 'The .pth to write.')
  define.config('With --from_pytorch: a recipe with the architecture of the file')
  define.string('workdir', None, "The run's folder; with --from_pytorch, a new or empty one.")
  define.integer('step', None, 'With --to_pytorch: step of the checkpoint; by default the newest.')
  define.boolean('resume_file', False, 'With --to_pytorch: write a content.pth with both networks, both Adam states '
                 'and the EMA.')
  define.integer('steps_per_epoch', None, 'With --resume_file: steps per epoch; by default from data.num_stacks or '
                 "from the number of images in the run's data.json.", lower_bound=1)


def _convert(args: types.SimpleNamespace) -> None:
  if (args.from_pytorch is None) == (args.to_pytorch is None):
    raise ConfigError('--from_pytorch and --to_pytorch: use exactly one of them')
  if args.workdir is None:
    raise ConfigError(f'--workdir is required; use {"a new folder" if args.from_pytorch else "the folder of the run"}')
  if args.from_pytorch or args.resume_file:
    exported.check_workdir(args.workdir)
  if args.from_pytorch:
    _read(args)
  else:
    _write(args)


def _read(args: types.SimpleNamespace) -> None:
  file, workdir = args.from_pytorch, args.workdir
  if args.config is None:
    raise ConfigError('--config is required; use a recipe with the architecture of the file, such as cifar10')
  for name, value in (('step', args.step), ('resume_file', args.resume_file or None),
                      ('steps_per_epoch', args.steps_per_epoch)):
    if value is not None:
      raise ConfigError(f'--{name} does not apply to --from_pytorch; use it with --to_pytorch')
  if os.path.exists(workdir) and (not os.path.isdir(workdir) or os.listdir(workdir)):
    raise ConfigError(f'--workdir is {workdir!r}, which exists and is not an empty folder; use another')
  config = config_lib.from_config_dict(args.config.fields)
  _check_training(config)
  # Slow to import, so only after the flags are checked.
  from ddgan_jax import train_state
  from ddgan_jax.interop import conversion, pytorch, resume_file, torch_file

  content = torch_file.read_checkpoint(file)
  try:
    lines = conversion.check_architecture(content, config)
    app.configure()
    if 'netG_dict' in content:
      state, has_ema = resume_file.state_from_content(content, config)
    else:
      state, has_ema = resume_file.state_from_generator(content, config), True
  except pytorch.InteropError as error:
    raise UserError(f'{file}: {error}') from error
  for line in lines:
    print(line, flush=True)
  from ddgan_jax.runs import workdir as workdir_lib
  from ddgan_jax.runs.checkpoints import Checkpoints

  checkpoints = Checkpoints(workdir)
  workdir_lib.check_space(workdir, config, checkpoints, train_state.abstract_state(config, None))
  try:
    checkpoints.save(state)
  except UserError as error:
    raise UserError(f'{file}: {error}') from error
  checkpoints.close()
  workdir_lib.write_description(workdir, config, state)  # last, because it makes the folder a run

  size = train_state.count_parameters(state.g_params)
  if 'netG_dict' not in content:
    print(f'{file}: imported a generator of {size:,} parameters as G and EMA of {workdir} at step 0. The file has no '
          f'discriminator: sampling needs none, and training starts with a new one (seed {config.seed}) and new Adam '
          'states.')
    return
  step = int(state.step)
  print(f'{file}: imported G ({size:,} parameters), D ({train_state.count_parameters(state.d_params):,}), both Adam '
        f'states{" and the EMA" if has_ema else ""} as {workdir} at step {step:,}'
        f'{"" if has_ema else "; the file has no EMA, so the EMA starts from G"}.')
  if step >= config.train.num_steps:
    print(f'train.num_steps is {config.train.num_steps:,}, so this run is finished; increase it to train longer.')


def _write(args: types.SimpleNamespace) -> None:
  file, workdir = args.to_pytorch, args.workdir
  if args.config is not None:
    raise ConfigError('--config does not apply to --to_pytorch; use it with --from_pytorch')
  if args.steps_per_epoch is not None and not args.resume_file:
    raise ConfigError('--steps_per_epoch requires --resume_file')
  if not os.path.isdir(os.path.dirname(file) or '.'):
    raise ConfigError(f'--to_pytorch: {os.path.dirname(file)!r} is not a folder; create it first')
  import ddgan_jax
  from ddgan_jax.interop import pytorch, torch_writer

  app.configure()
  run = ddgan_jax.load(workdir, args.step)
  (_check_training if args.resume_file else _check_generator)(run.config)
  if not args.resume_file:
    tensors = pytorch.generator_state_dict(run.params, run.config.generator)
    torch_writer.write_checkpoint(file, {f'module.{name}': tensor for name, tensor in tensors.items()})
    print(f'{file}: exported the EMA generator of {workdir} at step {run.step:,}, {len(tensors)} tensors.')
    return
  import jax

  from ddgan_jax import train_state
  from ddgan_jax.interop import conversion, resume_file
  from ddgan_jax.runs.checkpoints import Checkpoints

  steps = args.steps_per_epoch or conversion.steps_per_epoch(workdir, run.config)
  epoch, num_epochs = run.step // steps, -(-run.config.train.num_steps // steps)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  state = Checkpoints(workdir).restore(train_state.abstract_state(run.config, device), run.step)
  torch_writer.write_checkpoint(file, resume_file.content_from_state(state, run.config, epoch, num_epochs))
  print(f'{file}: exported G, D, both Adam states and the EMA of {workdir} at step {run.step:,}, epoch {epoch:,} of '
        f'{num_epochs:,}.')


def _check_generator(config: Config) -> None:
  """Raises ConfigError unless the original can sample the trained G."""
  from ddgan_jax import objectives

  if not objectives.make(config).samples_like_original:
    raise ConfigError(f'method is {config.method!r}, whose G the original cannot sample')


def _check_training(config: Config) -> None:
  """Raises ConfigError unless the original trains in the same way."""
  for field, found, possible in (
      ('method', config.method, 'ddgan'), ('optim.beta2_final', config.optim.beta2_final, -1.0),
      ('optim.r1_gamma_final', config.optim.r1_gamma_final, -1.0),
      ('optim.schedule_images', config.optim.schedule_images, 0),
      ('optim.ema_profiles', config.optim.ema_profiles, False)):
    if found != possible:
      raise ConfigError(f'{field} is {found!r}; use {possible!r} with a training of the original')


if __name__ == '__main__':
  app.start(main)
