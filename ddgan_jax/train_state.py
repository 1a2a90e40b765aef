"""What a run is at a step, how it begins, and what samples from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddgan_jax import diffusion, models, objectives
from ddgan_jax.config import Config, OptimConfig
from ddgan_jax.models import initializers, labels
from ddgan_jax.objectives.base import Params
from ddgan_jax.parallel import sharding as sharding_lib
from ddgan_jax.sampling import GeneratorFn


@flax.struct.dataclass
class TrainState:
  """Everything that the next step depends on, besides the data.

  Attributes:
    step: int32 scalar, joint steps done so far.
    rng: typed PRNG key, the root of all draws; never changes: step s uses fold_in(rng, s).
    g_params, d_params: float32 parameters of G and D; without a D an empty dict.
    ema_params: exponential moving average of g_params, which samples and metrics use.
    g_opt_state, d_opt_state: optax Adam states.
  """

  step: jax.Array
  rng: jax.Array
  g_params: Params
  d_params: Params
  ema_params: Params
  g_opt_state: optax.OptState
  d_opt_state: optax.OptState


def make_networks(
    config: Config
) -> tuple[models.Generator | models.MlpGenerator, models.Discriminator | models.MlpDiscriminator | None]:
  """G and D of a run, computing in `parallel.dtype`, with `parallel.remat`; D is None if the objective has none."""
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
  """The tables of a run's training levels, as its objective needs them."""
  return objectives.make(config).make_schedule(config)


def make_sampler(
    config: Config, params: Params, num_timesteps: int | None = None, label: int | np.ndarray | jax.Array | None = None
) -> tuple[GeneratorFn, diffusion.Schedule]:
  """What `sampling.sample` needs to sample from a run, by `Objective.make_sampler`.

  Args:
    config: the run.
    params: G's parameters, such as the EMA.
    num_timesteps: steps to sample in; by default those of the objective.
    label: of a conditional run: what to sample, one label for all images or [B] int32, one each; by default no label,
      which samples them all, unless `generator.label_dropout=0` trained the run with labels only: `generator_fn` then
      raises ConfigError.

  Returns:
    (generator_fn, schedule), as `sampling.sample` takes them.

  Raises:
    ConfigError: the run cannot be sampled in so many steps, or knows no such label.
  """
  generator, _ = make_networks(config)
  schedule = make_schedule(config)
  if label is None and labels.is_required(config.generator):
    # Refuses when it is called, because a run may be loaded before it is known what to sample.
    predict = lambda x_tp1, t, z: labels.check_label(None, config.generator)
  elif label is None:
    predict = models.generator_fn(generator, params, schedule)
  else:
    labels.check_label(label, config.generator)
    label = jnp.asarray(label, jnp.int32)
    predict = lambda x_tp1, t, z: models.generator_fn(
        generator, params, schedule, label=jnp.broadcast_to(label, t.shape))(x_tp1, t, z)
  return objectives.make(config).make_sampler(predict, schedule, num_timesteps)


def make_optimizers(
    optim: OptimConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """Adam for G and for D, each with its cosine (paper, appendix C)."""
  return tuple(
      optax.adam(learning_rate(rate, optim.lr_min, num_steps), b1=optim.beta1, b2=optim.beta2, eps=1e-8)
      for rate in (optim.lr_g, optim.lr_d))


def learning_rate(initial: float, final: float, num_steps: int) -> optax.Schedule:
  """A cosine from `initial` at step 0 to `final` at `num_steps`, constant after."""
  return optax.cosine_decay_schedule(initial, num_steps, alpha=final / initial)


def create(config: Config, mesh: jax.sharding.Mesh | None = None) -> TrainState:
  """The state at step 0, a pure function of `config.seed`; jit it with the wanted `out_shardings`.

  The EMA starts as a copy of G, and its first update replaces it.

  Args:
    config: the run.
    mesh: where `out_shardings` split arrays: each of its devices draws all weights and keeps its part, without
      communication.
  """
  g_params, d_params, root = _initial(config)
  if mesh is not None:
    g_params, d_params = sharding_lib.gather((g_params, d_params), mesh)
  g_optimizer, d_optimizer = make_optimizers(config.optim, config.train.num_steps)
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      rng=root,
      g_params=g_params,
      d_params=d_params,
      ema_params=jax.tree.map(jnp.copy, g_params),
      g_opt_state=g_optimizer.init(g_params),
      d_opt_state=d_optimizer.init(d_params),
  )


@functools.partial(jax.jit, static_argnums=0)  # traced once, for its shapes and for its numbers
def _initial(config: Config) -> tuple[Params, Params, jax.Array]:
  """Parameters of G and D, and the root of a run's draws."""
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
  """The state's shapes and dtypes, each with its sharding, for compiling and restoring; computes nothing.

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
  """The number of scalars in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
