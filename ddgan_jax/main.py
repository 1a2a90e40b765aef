"""Train: `python -m ddgan_jax.main --config configs/digits.py [--workdir DIR] [--config.SECTION.FIELD=VALUE …]`.

The same command again resumes; a finished run says so. See `--help` for the flags, `configs/` for the recipes.
On several hosts the same command runs on each: under SLURM, on a TPU slice or a JobSet they find each other, and
anywhere else by `--coordinator_address`, `--num_processes` and `--process_id` (see
ddgan_jax/parallel/processes.py, launch/).
"""

from __future__ import annotations

import os

from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app
from ddgan_jax.parallel import processes

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A recipe, such as configs/digits.py.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; by default runs/<config>, with _<name of data.path> if there is one.")
processes.define_flags()


def main(argv: list[str]) -> None:
  del argv
  config = config_lib.from_config_dict(_CONFIG.value)
  workdir = _WORKDIR.value
  is_default = workdir is None
  if is_default:
    file = config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]
    names = [os.path.splitext(os.path.basename(path.rstrip('/')))[0] for path in (file, config.data.path)]
    workdir = os.path.join('runs', '_'.join(filter(None, names)))  # each folder of images has a run of its own
  workdir = os.path.expanduser(workdir)

  # Before any other call of JAX.
  processes.initialize_from_flags()
  # After config and flags are checked: these take seconds to import.
  from ddgan_jax.parallel import compilation
  from ddgan_jax.training import loop

  compilation.use_persistent_cache()
  # Two folders of the same name share the default workdir; a run is not continued on the wrong one by accident.
  loop.train_and_evaluate(config, workdir, may_change_data=not is_default)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
