"""The training state, its initialization, and the sampler of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddgan_jax import diffusion, models, objectives, posthoc_ema, sampling
from ddgan_jax.config import Config, OptimConfig
from ddgan_jax.models import conditions, initializers, labels
from ddgan_jax.objectives.base import Params
from ddgan_jax.parallel import sharding as sharding_lib
from ddgan_jax.sampling import GeneratorFn


@flax.struct.dataclass
class TrainState:
  """Everything that the next step depends on, except the data.

  Attributes:
    step: int32 scalar, the number of training steps done.
    rng: typed PRNG key, constant; step s draws from fold_in(rng, s).
    g_params, d_params: float32 parameters of G and D; d_params is {} without a D.
    ema_params: exponential moving average (EMA) of g_params, used for samples and metrics.
    g_opt_state, d_opt_state: optax Adam states.
  """

  step: jax.Array
  rng: jax.Array
  g_params: Params
  d_params: Params
  ema_params: Params
  g_opt_state: optax.OptState
  d_opt_state: optax.OptState


@flax.struct.dataclass
class ProfiledState(TrainState):
  """The state of a run with `optim.ema_profiles`.

  Attributes:
    ema_profiles: one average of g_params for each of `posthoc_ema.SIGMAS`.
  """

  ema_profiles: tuple[Params, ...]


def make_networks(
    config: Config
) -> tuple[models.Generator | models.MlpGenerator, models.Discriminator | models.MlpDiscriminator | None]:
  """Makes G and D with `parallel.dtype` and `parallel.remat`; D is None if the objective has none."""
  dtype, remat = jnp.dtype(config.parallel.dtype), config.parallel.remat
  if config.generator.kind == 'mlp':
    generator = models.MlpGenerator(config.generator, dtype)
  else:
    generator = models.Generator(config.generator, dtype, remat)
  if not objectives.make(config).has_discriminator:
    discriminator = None
  elif config.discriminator.kind == 'mlp':
    discriminator = models.MlpDiscriminator(config.discriminator, dtype)
  else:
    discriminator = models.Discriminator(config.discriminator, dtype, remat)
  return generator, discriminator


def make_schedule(config: Config) -> diffusion.Schedule:
  """Makes the tables of a run's T training levels, by `Objective.make_schedule`."""
  return objectives.make(config).make_schedule(config)


def make_sampler(
    config: Config, params: Params, num_timesteps: int | None = None, label: int | np.ndarray | jax.Array | None = None,
    condition: np.ndarray | jax.Array | None = None
) -> tuple[GeneratorFn, diffusion.Schedule]:
  """Makes the generator function and schedule for `sampling.sample`, by `Objective.make_sampler`.

  Args:
    config: the run.
    params: G's parameters, usually the EMA.
    num_timesteps: sampling steps; by default the objective's.
    label: class label of a conditional run, one for all images or [B] int32. By default no label, which samples from
      all classes; in a run with `generator.label_dropout=0`, `generator_fn` then raises ConfigError.
    condition: condition of a run with `data.condition`, one for all images, [h, w, c] float32, or [B, h, w, c]. By
      default none; in a run with `generator.condition_dropout=0`, `generator_fn` then raises ConfigError.

  Returns:
    (generator_fn, schedule) for `sampling.sample`.

  Raises:
    ConfigError: the run does not support this number of steps, or has no such label or condition.
  """
  generator, _ = make_networks(config)
  schedule = make_schedule(config)
  # A run may be loaded before its label and condition are chosen, so a missing one is an error only when G is called.
  if label is not None:
    labels.check_label(label, config.generator)
  if condition is not None:
    conditions.check_condition(condition, config)

  def predict(x_tp1, t, z):
    labels.check_label(label, config.generator)
    conditions.check_condition(condition, config)
    given = {}
    if label is not None:
      given['label'] = jnp.broadcast_to(jnp.asarray(label, jnp.int32), t.shape)
    if condition is not None:
      given['condition'] = jnp.broadcast_to(
          jnp.asarray(condition, jnp.float32), (*t.shape, *config.data.condition_shape))
    return models.generator_fn(generator, params, schedule, **given)(x_tp1, t, z)

  return objectives.make(config).make_sampler(predict, schedule, num_timesteps)


def in_units_of_data(images: jax.Array, config: Config) -> jax.Array:
  """Converts samples to what the run's data are: uint8 images, float32 values in `data.value_range`, or points."""
  if config.data.is_8_bit:
    return sampling.to_uint8(images)
  return sampling.to_values(images, config.data.value_range) if config.data.value_range else images


def make_optimizers(
    optim: OptimConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """Makes Adam for G and for D, each with its own cosine learning rate (paper, appendix C).

  Args:
    optim: the settings.
    num_steps: length of the cosines, `Config.schedule_steps`.
  """
  return tuple(_adam(optim, cosine(rate, optim.lr_min, num_steps), num_steps) for rate in (
      optim.lr_g, optim.lr_d))


def _adam(optim: OptimConfig, rate: optax.Schedule, num_steps: int) -> optax.GradientTransformation:
  if optim.beta2_final < 0:
    return optax.adam(rate, b1=optim.beta1, b2=optim.beta2, eps=1e-8)
  beta2 = cosine(optim.beta2, optim.beta2_final, num_steps)
  return optax.inject_hyperparams(optax.adam, static_args=('b1', 'eps', 'eps_root'))(
      rate, b1=optim.beta1, b2=beta2, eps=1e-8)


def cosine(initial: float, final: float, num_steps: int) -> optax.Schedule:
  """Cosine decay from `initial` at step 0 to `final` at `num_steps`, then constant."""
  return optax.cosine_decay_schedule(initial, num_steps, alpha=final / initial)


def create(config: Config, mesh: jax.sharding.Mesh | None = None) -> TrainState:
  """Creates the state at step 0, a pure function of `config.seed`; jit it with `out_shardings`.

  The EMA starts as a copy of G; its first update replaces it.

  Args:
    config: the run.
    mesh: the mesh of `out_shardings`, if they split arrays. Every device then draws all weights and keeps its shard,
      without communication.
  """
  g_params, d_params, root = _initial(config)
  if mesh is not None:
    g_params, d_params = sharding_lib.gather((g_params, d_params), mesh)
  g_optimizer, d_optimizer = make_optimizers(config.optim, config.schedule_steps)
  state = TrainState(
      step=jnp.zeros((), jnp.int32),
      rng=root,
      g_params=g_params,
      d_params=d_params,
      ema_params=jax.tree.map(jnp.copy, g_params),
      g_opt_state=g_optimizer.init(g_params),
      d_opt_state=d_optimizer.init(d_params),
  )
  if not config.optim.ema_profiles:
    return state
  copies = tuple(jax.tree.map(jnp.copy, g_params) for _ in posthoc_ema.SIGMAS)  # the first update replaces them
  return ProfiledState(**vars(state), ema_profiles=copies)


@functools.partial(jax.jit, static_argnums=0)  # one trace serves both shapes and values
def _initial(config: Config) -> tuple[Params, Params, jax.Array]:
  """Draws the parameters of G and D; returns them and the key for `TrainState.rng`."""
  generator, discriminator = make_networks(config)
  g_key, d_key, root = jax.random.split(jax.random.key(config.seed), 3)
  x = jnp.zeros((1, config.generator.image_size, config.generator.image_size, config.generator.num_channels))
  t = jnp.ones((1,), jnp.int32)
  z = jnp.zeros((1, config.generator.nz))
  g_params = initializers.draw(g_key, lambda key: generator.init(key, x, t, z))['params']
  d_params = initializers.draw(d_key, lambda key: discriminator.init(key, x, t, x))['params'] if discriminator else {}
  return g_params, d_params, root


def abstract_state(
    config: Config, sharding: jax.sharding.Sharding | Callable[[Any], jax.sharding.Sharding] | None
) -> TrainState:
  """The state as `jax.ShapeDtypeStruct` leaves with shardings, for compiling and restoring; computes nothing.

  Args:
    config: the run.
    sharding: one for all arrays, or a function from array to sharding (`sharding.state_sharding(mesh)`); None for none.
  """
  leaf_sharding = sharding if callable(sharding) else lambda leaf: sharding
  return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding(leaf)), _shapes(config))


@functools.lru_cache(maxsize=4)
def _shapes(config: Config) -> TrainState:
  return jax.eval_shape(lambda: create(config))


def count_parameters(params: Params) -> int:
  """The total number of elements in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
