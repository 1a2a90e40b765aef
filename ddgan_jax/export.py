"""Export a run for other programs: `ddgan export --workdir runs/digits --out digits.stablehlo`.

`--out` writes the whole sampler, (seed, image indices) → uint8 images (float32 with data.value_range), with its
parameters, as portable StableHLO; `launch/sample_exported.py` runs it with only jax, numpy and flatbuffers.
`--safetensors ema.safetensors` writes the EMA parameters with the config as metadata; `ddgan_jax.load` and
`ddgan sample --workdir` read that file like a workdir.
`--sigma_rel 0.1` exports an EMA of another length, if the run has `optim.ema_profiles`.

`--hub OWNER/NAME` uploads the EMA parameters, the config, samples and a model card to the Hugging Face Hub, in one
commit, from which `ddgan_jax.load('hf://OWNER/NAME')` reads them; it needs huggingface_hub (`ddgan_jax[hub]`) and a
login. `--folder OUT` writes the same files to a new folder, which `ddgan_jax.load` reads too. They contain no path of
this machine; state the licence of the weights with `--license`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import types
from collections.abc import Sequence
from typing import Any

from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_export, _define_flags, __doc__, argv, required=('workdir',))


def _define_flags(define: options.Definer) -> None:
  define.string('workdir', None, "The run's folder, or an exported model.")
  define.string('out', None, 'The StableHLO file to write.')
  define.string('safetensors', None, 'The safetensors file to write.')
  define.string('hub', None, 'The repository to upload to, OWNER/NAME; created if needed.')
  define.string('folder', None, 'The new folder to write with the files that --hub uploads.')
  define.boolean('private', False, 'With --hub: the repository is private.')
  define.string('license', None, "With --hub or --folder: the licence of the weights, the Hub's name of it, such as "
                'apache-2.0 or cc-by-4.0.')
  define.integer('step', None, 'Step of the checkpoint; by default the newest.')
  define.integer(
      'num_timesteps', None, 'Number of sampling steps, a divisor of T; for the methods gaussian, ufogen and siddm.')
  define.integer(
      'label', None, 'Class label of the sampler; required if the run was trained with generator.label_dropout=0.')
  define.float(
      'sigma_rel', None, 'Relative length of the EMA, such as 0.1, of a run with optim.ema_profiles.')
  define.list('platforms', ['cpu', 'cuda', 'tpu'], 'Platforms of the StableHLO file.')


def _export(args: types.SimpleNamespace) -> None:
  _check_flags(args)
  # Slow to import, so only after the flags are checked.
  import ddgan_jax
  from ddgan_jax.interop import hub, safetensors_file, stablehlo
  from ddgan_jax.models import labels
  from ddgan_jax.utils import files

  unknown = sorted(set(args.platforms) - set(stablehlo.PLATFORMS))
  if unknown or not args.platforms:
    raise ConfigError(f'--platforms is {",".join(args.platforms) or "empty"}; use some of '
                      f'{",".join(stablehlo.PLATFORMS)}')
  config = ddgan_jax.load_config(args.workdir)
  if args.out:
    labels.check_label(args.label, config.generator, '--label')
  if args.hub:
    hub.check_name(args.hub)
    hub.check_login()
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
  if args.folder or args.hub:
    _publish(args, run, what)


def _publish(args: types.SimpleNamespace, run: Any, what: str) -> None:
  """Writes the folder of the run and uploads it, as the flags say."""
  import ddgan_jax
  from ddgan_jax.cli import model_output
  from ddgan_jax.interop import hub

  if args.label is not None or args.num_timesteps is not None:  # of --out
    run = ddgan_jax.load(args.workdir, args.step, sigma_rel=args.sigma_rel)
  with tempfile.TemporaryDirectory() as temporary:
    folder = os.path.join(temporary, 'model')
    os.mkdir(folder)
    has_metrics = model_output.write(folder, run, args.hub or 'OWNER/NAME', args.license, args.sigma_rel)
    if args.folder:
      shutil.copytree(folder, args.folder, dirs_exist_ok=True)
      print(f'{args.folder}: the EMA of {what}, its config, samples and a model card (README.md).', flush=True)
    if not has_metrics:
      print('The model card has no metrics; ddgan evaluate measures them.', flush=True)
    if args.hub:
      message = f'Step {run.step:,}, exported by ddgan_jax {ddgan_jax.__version__}'
      url = hub.upload(folder, args.hub, args.private, message)
      print(f'hf://{args.hub}: the EMA of {what}, its config, samples and a model card, at {url}')


def _check_flags(args: types.SimpleNamespace) -> None:
  """Raises ConfigError for missing or conflicting flags."""
  if not (args.out or args.safetensors or args.folder or args.hub):
    raise ConfigError('--out, --safetensors, --folder and --hub: use at least one of them')
  if args.safetensors and not args.safetensors.endswith('.safetensors'):
    raise ConfigError(f'--safetensors is {args.safetensors!r}; use a name that ends in .safetensors')
  for name, file in (('out', args.out), ('safetensors', args.safetensors)):
    if file and not os.path.isdir(os.path.dirname(file) or '.'):
      raise ConfigError(f'--{name}: {os.path.dirname(file)!r} is not a folder; create it first')
  if args.folder and os.path.exists(args.folder) and (not os.path.isdir(args.folder) or os.listdir(args.folder)):
    raise ConfigError(f'--folder is {args.folder!r}, which exists and is not an empty folder; use another')
  if args.private and not args.hub:
    raise ConfigError('--private: use it with --hub')
  if args.license is not None:
    if not (args.hub or args.folder):
      raise ConfigError('--license: use it with --hub or --folder')
    if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', args.license):
      raise ConfigError(f"--license is {args.license!r}; use the Hub's name of a licence, such as apache-2.0")


if __name__ == '__main__':
  app.start(main)
