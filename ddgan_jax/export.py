"""Export a run for other programs: `ddgan export --workdir runs/digits --out digits.stablehlo`.

`--out` writes the whole sampler, (seed, image indices) → uint8 images (float32 with data.value_range), with its
parameters, as portable StableHLO; `launch/sample_exported.py` runs it with only jax, numpy and flatbuffers.
`--safetensors ema.safetensors` writes the EMA parameters with the config as metadata; `ddgan_jax.load` and
`ddgan sample --workdir` read that file like a workdir.
`--sigma_rel 0.1` exports an EMA of another length, if the run has `optim.ema_profiles`.
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence

from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_export, _define_flags, __doc__, argv, required=('workdir',))


def _define_flags(define: options.Definer) -> None:
  define.string('workdir', None, "The run's folder.")
  define.string('out', None, 'The StableHLO file to write.')
  define.string('safetensors', None, 'The safetensors file to write.')
  define.integer('step', None, 'Step of the checkpoint; by default the newest.')
  define.integer(
      'num_timesteps', None, 'Number of sampling steps, a divisor of T; for the methods gaussian, ufogen and siddm.')
  define.integer(
      'label', None, 'Class label of the sampler; required if the run was trained with generator.label_dropout=0.')
  define.float(
      'sigma_rel', None, 'Relative length of the EMA, such as 0.1, of a run with optim.ema_profiles.')
  define.list('platforms', ['cpu', 'cuda', 'tpu'], 'Platforms of the StableHLO file.')


def _export(args: types.SimpleNamespace) -> None:
  if not args.out and not args.safetensors:
    raise ConfigError('--out and --safetensors: use at least one of them')
  if args.safetensors and not args.safetensors.endswith('.safetensors'):
    raise ConfigError(f'--safetensors is {args.safetensors!r}; use a name that ends in .safetensors')
  for name, file in (('out', args.out), ('safetensors', args.safetensors)):
    if file and not os.path.isdir(os.path.dirname(file) or '.'):
      raise ConfigError(f'--{name}: {os.path.dirname(file)!r} is not a folder; create it first')
  # Slow to import, so only after the flags are checked.
  import ddgan_jax
  from ddgan_jax.interop import safetensors_file, stablehlo
  from ddgan_jax.models import labels
  from ddgan_jax.utils import files

  unknown = sorted(set(args.platforms) - set(stablehlo.PLATFORMS))
  if unknown or not args.platforms:
    raise ConfigError(f'--platforms is {",".join(args.platforms) or "empty"}; use some of '
                      f'{",".join(stablehlo.PLATFORMS)}')
  if args.out:
    labels.check_label(args.label, ddgan_jax.load_config(args.workdir).generator, '--label')
  app.configure()
  run = ddgan_jax.load(args.workdir, args.step, args.num_timesteps, label=args.label, sigma_rel=args.sigma_rel)
  what = f'step {run.step:,} of {args.workdir}'
  if args.safetensors:
    safetensors_file.write(args.safetensors, run.params, run.config, run.step)
    size = os.path.getsize(args.safetensors) / 2**20
    print(f'{args.safetensors}: the EMA of {what}, {size:,.1f} MiB.', flush=True)
  if args.out:
    exported = stablehlo.export_sampler(run, args.platforms).serialize()
    with files.atomic_write(args.out, 'wb') as file:
      file.write(exported)
    print(f'{args.out}: the sampler of {what} in {run.schedule.num_timesteps} steps, for '
          f'{", ".join(args.platforms)}, {len(exported) / 2**20:,.1f} MiB.')


if __name__ == '__main__':
  app.start(main)
