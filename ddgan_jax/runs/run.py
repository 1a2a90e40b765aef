"""A trained run, loaded for sampling."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Run(NamedTuple):
  """A trained run, as `load` gives it.

  Attributes:
    generator_fn: (x_tp1 [B, H, W, C], t [B] int32, z [B, nz]) → x_0_pred [B, H, W, C] float32, with the EMA parameters.
    schedule: the diffusion process in the steps to sample in.
    config: the run's `config.Config`.
    step: joint steps that the parameters have had.
    params: the EMA parameters.
  """

  generator_fn: Any
  schedule: Any
  config: Any
  step: int
  params: Any


def load_config(workdir: str | os.PathLike) -> Any:
  """Reads the `config.Config` of a run, in its folder or a `.safetensors` file of it. Raises config.UserError."""
  from etils import epath

  from ddgan_jax import config as config_lib
  from ddgan_jax.runs.checkpoints import CheckpointError

  workdir = os.path.expanduser(workdir)
  if str(workdir).endswith('.safetensors'):
    from ddgan_jax.interop import safetensors_file

    return safetensors_file.read_config(workdir)
  file = epath.Path(workdir) / 'config.json'
  if not file.exists():
    raise CheckpointError(f'{workdir}: has no config.json, so it is not the workdir of a run')
  return config_lib.from_json(file.read_text(), str(file))


def load(
    workdir: str | os.PathLike, step: int | None = None, num_timesteps: int | None = None, sharding: Any = None,
    label: Any = None) -> Run:
  """Loads the EMA generator of a run, ready for `sampling.sample`.

  Args:
    workdir: the run's folder, or a `.safetensors` file that `python -m ddgan_jax.export` wrote of it.
    step: which checkpoint; by default the newest good one, with a printed sentence for each that had to be refused.
    num_timesteps: steps to sample in, by default those of the run; only Gaussian diffusion leaves a choice.
    sharding: where the parameters go, a `jax.sharding.Sharding`; by default the first device.
    label: of a conditional run: what to sample, one label or an int array, one for each image; by default no label. A
      run with `generator.label_dropout=0` can be loaded without one, but its `generator_fn` then raises
      config.ConfigError; `image_output.generate` and `train_state.make_sampler` take a label later.

  Returns:
    A `Run`.

  Raises:
    config.UserError: no run, no good checkpoint, the one asked for is damaged, or the run cannot be sampled in so many
      steps or knows no such label; one sentence.
  """
  import jax

  from ddgan_jax import train_state
  from ddgan_jax.runs.checkpoints import CheckpointError, Checkpoints

  workdir = os.path.expanduser(workdir)
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if str(workdir).endswith('.safetensors'):
    from ddgan_jax.interop import safetensors_file

    params, config, saved_step = safetensors_file.read(workdir)
    if step not in (None, saved_step):
      raise CheckpointError(f'{workdir}: holds step {saved_step}, not {step}')
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), params)
    return Run(*train_state.make_sampler(config, params, num_timesteps, label), config, saved_step, params)

  config = load_config(workdir)
  train_state.make_sampler(config, None, num_timesteps, label)  # refuses what is wrong before anything is read
  checkpoints = Checkpoints(workdir)
  steps = checkpoints.steps()
  if not steps or (step is not None and step not in steps):
    found = f'its checkpoints are {", ".join(map(str, steps))}' if steps else 'it has no checkpoint yet'
    raise CheckpointError(f'{workdir}: nothing to load{"" if step is None else f" for step {step}"}; {found}')
  target = train_state.abstract(config, sharding).ema_params
  if step is None:
    params, step = checkpoints.restore_newest_ema(target, say=print)
  else:
    params = checkpoints.restore_ema(target, step)
  generator_fn, schedule = train_state.make_sampler(config, params, num_timesteps, label)
  return Run(generator_fn, schedule, config, step, params)
