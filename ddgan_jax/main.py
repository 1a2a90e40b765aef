"""Train a run or resume it: `ddgan train --config digits [--workdir DIR] [--config.SECTION.FIELD=VALUE …]`.

The same command resumes the run; so does `--workdir DIR` alone, with the run's own config. A resumed run keeps its own
values of the fields that may change (`train.`, `eval.`, paths of the data, …), unless the command line sets them, and
prints where the recipe differs. All other fields must equal those of the run.

`python -m ddgan_jax.main` is the same. On several hosts, run the same command on each. SLURM tasks, TPU slices and
JobSets connect automatically; otherwise use `--coordinator_address`, `--num_processes` and `--process_id` (see
ddgan_jax/parallel/processes.py and launch/).
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options
from ddgan_jax.config import resuming


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_train, _define_flags, __doc__, argv, required=('config',), resumes=True)


def _define_flags(define: options.Definer) -> None:
  define.config()
  define.string(
      'workdir', None, "The run's folder; by default runs/<config>, or runs/<config>_<name of data.path>.")
  define.processes()


def _train(args: types.SimpleNamespace) -> None:
  workdir = os.path.expanduser(args.workdir or _default_workdir(args.config))
  config, kept = _config(args.config, workdir)
  options.join_processes(args)
  # Slow to import, so only after config and flags are checked.
  from ddgan_jax.parallel import processes
  from ddgan_jax.training import loop

  app.configure()
  if kept and processes.is_main():
    print(kept, flush=True)
  # Data folders of the same name share a default workdir, so only an explicit --workdir may resume with other data.
  loop.train_and_evaluate(config, workdir, allow_other_data=bool(args.workdir))


def _default_workdir(recipe: options.Recipe) -> str:
  """The default workdir, a separate one for each data.path."""
  data = os.path.splitext(os.path.basename(str(recipe.fields.data.path).rstrip('/')))[0]
  return os.path.join('runs', '_'.join(filter(None, [recipe.name, data])))


def _config(recipe: options.Recipe, workdir: str) -> tuple[config_lib.Config, str]:
  """The run's config, and a sentence about fields that keep the run's value instead of the recipe's."""
  fields, kept = recipe.fields.to_dict(), {}
  if recipe.name and resuming.has_checkpoint(workdir) and (stored := resuming.stored_config(workdir)):
    fields, kept = resuming.merge_stored(fields, recipe.overrides, stored)
  config = config_lib.from_config_dict(fields)
  listed = ', '.join(f'{name}={value!r} (the recipe has {other!r})' for name, (value, other) in kept.items())
  return config, listed and f'{workdir} keeps {listed}; set a field on the command line to change it.'


if __name__ == '__main__':
  app.start(main)
