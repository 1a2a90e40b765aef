"""Train a run, or resume it: `ddgan train --config digits [--workdir DIR] [--config.SECTION.FIELD=VALUE …]`.

The same command again resumes, and so does `--workdir DIR` alone, with the run's own config; a finished run says so.
Resumed with `--config`, a run keeps its own values of the fields that may change (`train.`, `eval.`, where the data
are, …) unless the command line sets them, and says where the recipe differs; all other fields must be those of the run.

`python -m ddgan_jax.main` is the same. On several hosts the same command runs on each: under SLURM, on a TPU slice or a
JobSet they find each other, and anywhere else by `--coordinator_address`, `--num_processes` and `--process_id` (see
ddgan_jax/parallel/processes.py, launch/).
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
      'workdir', None, "The run's folder; by default runs/<config>, with _<name of data.path> if there is one.")
  define.processes()


def _train(args: types.SimpleNamespace) -> None:
  workdir = os.path.expanduser(args.workdir or _default_workdir(args.config))
  config, kept = _config(args.config, workdir)
  options.join_processes(args)
  # After config and flags are checked: these take seconds to import.
  from ddgan_jax.parallel import processes
  from ddgan_jax.training import loop

  app.configure()
  if kept and processes.is_main():
    print(kept, flush=True)
  # Two folders of the same name share the default workdir; a run is not continued on the wrong one by accident.
  loop.train_and_evaluate(config, workdir, allow_other_data=bool(args.workdir))


def _default_workdir(recipe: options.Recipe) -> str:
  """Each folder of images has a run of its own."""
  data = os.path.splitext(os.path.basename(str(recipe.fields.data.path).rstrip('/')))[0]
  return os.path.join('runs', '_'.join(filter(None, [recipe.name, data])))


def _config(recipe: options.Recipe, workdir: str) -> tuple[config_lib.Config, str]:
  """The run's config, and a sentence on the fields that it keeps although the recipe has them otherwise."""
  fields, kept = recipe.fields.to_dict(), {}
  if recipe.name and resuming.has_checkpoint(workdir) and (stored := resuming.stored_config(workdir)):
    fields, kept = resuming.merge_stored(fields, recipe.overrides, stored)
  config = config_lib.from_config_dict(fields)
  said = ', '.join(f'{name}={value!r} (the recipe has {other!r})' for name, (value, other) in kept.items())
  return config, said and f'{workdir} keeps {said}; set a field on the command line to change it.'


if __name__ == '__main__':
  app.start(main)
