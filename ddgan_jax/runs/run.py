"""A trained run, loaded for sampling."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddgan_jax.utils import checks

if TYPE_CHECKING:  # not needed by `load_config`, and slow to import
  import jax
  import numpy as np

  from ddgan_jax.config import Config
  from ddgan_jax.diffusion import Schedule
  from ddgan_jax.sampling import GeneratorFn

  Label = int | np.ndarray | jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
  """A trained run, as `load` returns it.

  Attributes:
    generator_fn: (x_tp1 [B, H, W, C], t [B] int32, z [B, nz]) → x_0_pred [B, H, W, C] float32, with the EMA parameters.
    schedule: the diffusion process with the number of sampling steps.
    config: the run's configuration.
    step: number of training steps of the parameters.
    params: the EMA parameters.
    label: the class label of `generator_fn`; None for no label.
    workdir: the folder, file or Hub address that the run was loaded from, or ''.
  """

  generator_fn: GeneratorFn
  schedule: Schedule
  config: Config
  step: int
  params: Any
  label: Label = None
  workdir: str = ''

  def sample(
      self, key: jax.Array, n: int, label: Label = None, condition: np.ndarray | jax.Array | None = None) -> jax.Array:
    """Samples n images with a jitted `sampling.sample`, compiled once for each n.

    With the same key, the images equal those of `sampling.sample` up to float32 rounding.

    Args:
      key: a typed PRNG key, `jax.random.key(seed)`; used once.
      n: number of images, at least 1; the noise of all images must fit in memory (`sampling.max_batch_size`).
      label: class label of a conditional run, one for all images or [n] int32; by default that of `load`. A new label
        does not recompile.
      condition: of a run with data.condition, float32 in [-1, 1]: one for all images, [h, w, c], or [n, h, w, c] (see
        `data.conditions`). A new condition does not recompile.

    Returns:
      [n, H, W, C] float32, in [-1, 1] for a generator that ends in tanh (in Haar space, roughly); convert with
      `sampling.to_uint8`, or with data.value_range by `sampling.to_values`.

    Raises:
      ValueError, TypeError: an argument has the wrong value or type; the message names it.
      config.ConfigError: the run has no such label or condition, or requires one.
    """
    import jax.numpy as jnp

    from ddgan_jax.models import conditions, labels

    checks.key('key', key)
    checks.whole('n', n, 1)
    label = self.label if label is None else label
    labels.check_label(label, self.config.generator)
    if label is not None:
      label = jnp.asarray(label, jnp.int32)
      if label.shape not in ((), (n,)):
        raise ValueError(f'label has shape {list(label.shape)}; use an integer or shape [{n}], one label per image')
    if condition is not None:
      checks.floats('condition', condition)
      if condition.ndim not in (3, 4) or condition.ndim == 4 and len(condition) != n:
        raise ValueError(f'condition has shape {list(condition.shape)}; use [h, w, c] or [{n}, h, w, c]')
    conditions.check_condition(condition, self.config)
    return self._sample(self.params, key, label, condition, n=n)

  @functools.cached_property
  def _sample(self) -> Callable[..., jax.Array]:
    """The jitted function (params, key, label, condition, n) → images."""
    from ddgan_jax import sampling, train_state
    from ddgan_jax.parallel import compilation

    def sample(params, key, label, condition, n):
      generator_fn, schedule = train_state.make_sampler(
          self.config, params, self.schedule.num_timesteps, label, condition)
      return sampling.sample(key, generator_fn, schedule, (n, *self.config.image_shape), self.config.generator.nz)

    return compilation.jit(sample, static_argnames='n')

  def __repr__(self) -> str:
    from ddgan_jax import train_state

    parameters = train_state.count_parameters(self.params)
    label = '' if self.label is None else f', label={self.label!r}'
    return (f'Run(workdir={self.workdir!r}, method={self.config.method!r}, T={self.schedule.num_timesteps}, '
            f'image_shape={self.config.image_shape}, step={self.step}, parameters={parameters:,}{label})')


def load_config(workdir: str | os.PathLike) -> Config:
  """Reads the `config.Config` of a run from its folder or an exported model, as in `load`. Raises config.UserError."""
  from etils import epath

  from ddgan_jax import config as config_lib
  from ddgan_jax.config import exported
  from ddgan_jax.runs.checkpoints import CheckpointError

  workdir = _path(workdir)
  if exported.is_file(workdir):
    from ddgan_jax.interop import safetensors_file

    return safetensors_file.read_config(workdir)
  if exported.is_exported(workdir):
    from ddgan_jax.interop import model_folder

    return model_folder.read_config(_folder(workdir, exported.CONFIG), workdir)
  file = epath.Path(workdir) / 'config.json'
  if not file.exists():
    raise CheckpointError(f'{workdir}: has no config.json; use the workdir of a run')
  return config_lib.from_json(file.read_text(), str(file))


def load(
    workdir: str | os.PathLike, step: int | None = None, num_timesteps: int | None = None,
    sharding: jax.sharding.Sharding | None = None, label: Label = None, sigma_rel: float | None = None) -> Run:
  """Loads the EMA generator of a run, ready for `Run.sample` and `sampling.sample`.

  Args:
    workdir: the run's folder; a `.safetensors` file or a folder written by `ddgan export`; or `hf://OWNER/NAME` or
      `hf://OWNER/NAME@REVISION`, a model on the Hugging Face Hub (needs huggingface_hub), which is cached.
    step: the checkpoint to load; by default the newest good one (each damaged one prints a warning). With `sigma_rel`,
      any step in ema_profiles/.
    num_timesteps: sampling steps, by default those of the run; fewer for the methods gaussian, ufogen and siddm.
    sharding: the sharding of the parameters; by default the first device.
    label: class label of a conditional run, an integer or an array with one per image; by default no label. Without
      one, `generator_fn` of a run with `generator.label_dropout=0` raises config.ConfigError, but `Run.sample` accepts
      a label.
    sigma_rel: instead of the EMA, the average of this relative length, of a run with `optim.ema_profiles` (see
      `posthoc_ema`).

  Returns:
    A `Run`.

  Raises:
    config.UserError: there is no run or no good checkpoint, the requested one is damaged, or the run does not support
      this number of steps or label.
    TypeError: an argument has the wrong type; the message names it.
  """
  import jax

  from ddgan_jax import train_state
  from ddgan_jax.config import exported
  from ddgan_jax.runs import ema_snapshots
  from ddgan_jax.runs.checkpoints import CheckpointError, Checkpoints

  workdir = _path(workdir)
  for name, value in (('step', step), ('num_timesteps', num_timesteps)):
    if value is not None:
      checks.integer(name, value)
  if not isinstance(sigma_rel, (int, float, type(None))):
    raise TypeError(f'sigma_rel is {checks.describe(sigma_rel)}; use a number')
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  checks.instance('sharding', sharding, jax.sharding.Sharding)
  is_exported = exported.is_exported(workdir)
  if is_exported and sigma_rel is not None:
    raise CheckpointError(f'sigma_rel is {sigma_rel}; use it with the workdir of a run, not with an exported model')
  config = load_config(workdir)
  train_state.make_sampler(config, None, num_timesteps, label)  # raises before anything is read
  if is_exported:
    params, config, saved_step = _read_exported(workdir)
    if step not in (None, saved_step):
      raise CheckpointError(f'step is {step}; use {saved_step}, the only step in {workdir}')
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), params)
    sampler = train_state.make_sampler(config, params, num_timesteps, label)
    return Run(*sampler, config, saved_step, params, label, workdir)

  target = train_state.abstract_state(config, sharding).ema_params
  if sigma_rel is not None:
    params, step = ema_snapshots.reconstruct(workdir, target, step, sigma_rel)
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), params)
    return Run(*train_state.make_sampler(config, params, num_timesteps, label), config, step, params, label, workdir)
  checkpoints = Checkpoints(workdir)
  steps = checkpoints.steps()
  if not steps or (step is not None and step not in steps):
    if not steps:
      raise CheckpointError(f'{workdir}: has no checkpoint yet; train the run first')
    raise CheckpointError(f'{workdir}: has no checkpoint of step {step}; use one of {", ".join(map(str, steps))}')
  if step is None:
    params, step = checkpoints.restore_newest_ema(target, log=print)
  else:
    params = checkpoints.restore_ema(target, step)
  sampler = train_state.make_sampler(config, params, num_timesteps, label)
  return Run(*sampler, config, step, params, label, workdir)


def _read_exported(workdir: str) -> tuple[Any, Config, int]:
  """The EMA parameters, config and step of an exported model."""
  from ddgan_jax.config import exported
  from ddgan_jax.interop import model_folder, safetensors_file

  if exported.is_file(workdir):
    return safetensors_file.read(workdir)
  return model_folder.read(_folder(workdir, exported.CONFIG, exported.WEIGHTS), workdir)


def _folder(workdir: str, *names: str) -> str:
  """The local folder of an exported model; downloads these files if it is on the Hub."""
  from ddgan_jax.config import exported
  from ddgan_jax.interop import hub

  if not exported.is_on_hub(workdir):
    return workdir
  return hub.download(workdir, names, show_progress=exported.WEIGHTS in names)


def _path(workdir: str | os.PathLike) -> str:
  if not isinstance(workdir, (str, os.PathLike)):
    raise TypeError(f'workdir is {checks.describe(workdir)}; use a path')
  return os.path.expanduser(os.fspath(workdir))
