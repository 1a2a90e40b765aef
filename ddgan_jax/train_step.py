"""The joint training step: D's update, then G's, then the EMA (paper, section 3.2), and its two relatives.

- `gaussian`: no D; G's loss is the L2 distance of Gaussian diffusion (`losses.gaussian_loss`), the rest is the same.
- `augmented_gan`: G makes x_0 from pure noise, and D sees real and generated images diffused to a random level.

Pure: every random number is an argument, made by `make_draws` from one key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddgan_jax import diffusion, models, train_state
from ddgan_jax.config import Config, OptimConfig
from ddgan_jax.models import labels
from ddgan_jax.objectives import losses
from ddgan_jax.objectives.losses import HalfDraws, Metrics
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.train_state import TrainState


class Draws(NamedTuple):
  """All random numbers of one joint step: D's half and G's half share nothing but x_0."""

  d: HalfDraws
  g: HalfDraws


def make_draws(
    key: jax.Array, shape: tuple[int, int, int, int], num_timesteps: int, latent_dim: int, label_dropout: float = 0.0
) -> Draws:
  """Draws everything that a step needs.

  Args:
    key: typed PRNG key, used once: `fold_in(state.rng, state.step)` in training.
    shape: (B, H, W, C) of the global batch.
    num_timesteps: T.
    latent_dim: nz.
    label_dropout: probability that a row's label is withheld, in either half by itself.
  """

  def half(key):
    t_key, noise_t_key, noise_tp1_key, z_key, posterior_key, dropout_key, *label_key = jax.random.split(
        key, 7 if label_dropout else 6)
    return HalfDraws(
        t=jax.random.randint(t_key, shape[:1], 0, num_timesteps),
        noise_t=jax.random.normal(noise_t_key, shape),
        noise_tp1=jax.random.normal(noise_tp1_key, shape),
        z=jax.random.normal(z_key, (shape[0], latent_dim)),
        posterior_noise=jax.random.normal(posterior_key, shape),
        dropout_key=dropout_key,
        keep_label=jax.random.bernoulli(label_key[0], 1 - label_dropout, shape[:1]) if label_dropout else None,
    )

  d_key, g_key = jax.random.split(key)
  return Draws(d=half(d_key), g=half(g_key))


def train_step(
    state: TrainState,
    x_0: jax.Array,
    draws: Draws,
    label: jax.Array | None = None,
    *,
    generator: models.Generator,
    discriminator: models.Discriminator | None,
    schedule: diffusion.Schedule,
    optim: OptimConfig,
    num_steps: int,
    with_r1: bool | jax.Array,
    augmented: bool = False,
    mesh: Mesh | None = None,
    accumulation: int = 1,
) -> tuple[TrainState, Metrics]:
  """One joint step: updates D against the present G, then G against the new D, then the EMA.

  Without a D it is a step of Gaussian diffusion: G by `losses.gaussian_loss`, then the EMA.

  Both gradients are means over the rows of the batch, so it makes no difference beyond rounding how the rows are cut,
  if every cut is at the border of a group of the minibatch stddev: over the devices of `mesh`, and on each device into
  `accumulation` microbatches. Either update uses its gradient over the whole batch.

  Args:
    state: the state at step s.
    x_0: [B, H, W, C] float32 in [-1, 1], the global batch.
    draws: all random numbers of the step.
    label: [B] int32 of a conditional run; None of any other.
    generator, discriminator, schedule: the networks and the diffusion process; discriminator None for `gaussian`.
    optim: optimizer settings; `lazy_reg` is not read here, the caller chooses `with_r1`.
    num_steps: length of the cosine learning-rate schedules.
    with_r1: add the R1 penalty; as a bool each value is a compiled program of its own, as an array (bool scalar) one
      program holds both, and `r1_penalty` is 0 without R1.
    augmented: method `augmented_gan`.
    mesh: the devices that share the rows; None leaves the arrays where they are.
    accumulation: microbatches, one after the other, of a device's rows: less memory, the same result.

  Returns:
    The state at step s + 1 and float32 scalars: `loss_d` (and `_real`, `_fake`), `loss_g`, `r1_penalty` (only with
    R1), `logits_real`, `logits_fake`, `grad_norm_d`, `grad_norm_g`, `lr_d`, `lr_g`; without a D only those of G.
  """
  g_optimizer, d_optimizer = train_state.make_optimizers(optim, num_steps)
  make_pairs = losses.augmented_real_and_fake if augmented else losses.real_and_fake

  def d_gradient(d_params, g_params, rows):
    # The fakes are made outside of the differentiated function: no gradient reaches G.
    x_0, draws, places, label, r1_now = rows
    x_t, x_tp1, x_t_fake = make_pairs(g_params, generator, schedule, x_0, draws, places, label)

    def of_loss(r1_gamma):
      (loss, parts), gradient = jax.value_and_grad(losses.discriminator_loss, has_aux=True)(
          d_params, discriminator, x_t, x_t_fake, draws.t, x_tp1, r1_gamma, label)
      return gradient, {'loss_d': loss, **parts}

    def of_loss_without():
      gradient, parts = of_loss(None)
      return gradient, {'r1_penalty': jnp.zeros(()), **parts}

    if isinstance(with_r1, bool):
      return of_loss(optim.r1_gamma if with_r1 else None)
    return jax.lax.cond(r1_now, lambda: of_loss(optim.r1_gamma), of_loss_without)

  def g_gradient(g_params, d_params, rows):
    if discriminator is None:
      loss, gradient = jax.value_and_grad(losses.gaussian_loss)(g_params, generator, schedule, *rows)
    else:
      loss, gradient = jax.value_and_grad(losses.generator_loss)(
          g_params, d_params, generator, discriminator, schedule, *rows, augmented)
    return gradient, {'loss_g': loss}

  def mean_gradient(function, params, others, rows):
    with jax.named_scope(function.__name__):  # so that profiles and collectives tell whose they are
      function = functools.partial(_mean_over_microbatches, function, accumulation)
      return (function if mesh is None else sharding.mean_gradient(function, mesh))(params, others, rows)

  def rows_of(half):
    withheld = label is not None and half.keep_label is not None
    return x_0, half, places, jnp.where(half.keep_label, label, labels.NONE) if withheld else label

  places = jnp.arange(x_0.shape[0])
  d_params, d_opt_state, d_metrics = state.d_params, state.d_opt_state, {}
  if discriminator is not None:
    rows = (*rows_of(draws.d), jnp.asarray(with_r1))
    d_grads, d_metrics = mean_gradient(d_gradient, d_params, state.g_params, rows)
    d_updates, d_opt_state = d_optimizer.update(d_grads, d_opt_state)
    d_params = optax.apply_updates(d_params, d_updates)
    d_metrics['grad_norm_d'] = optax.tree.norm(d_grads)
    d_metrics['lr_d'] = train_state.learning_rate(optim.lr_d, optim.lr_min, num_steps)(state.step)

  # G, with fresh draws on the same images, against the D that was just updated.
  g_grads, g_metrics = mean_gradient(g_gradient, state.g_params, d_params, rows_of(draws.g))
  g_updates, g_opt_state = g_optimizer.update(g_grads, state.g_opt_state)
  g_params = optax.apply_updates(state.g_params, g_updates)

  decay = jnp.where(state.step == 0, 0.0, optim.ema_decay)  # the initial G has no place in the average
  ema_params = jax.tree.map(lambda ema, new: decay * ema + (1 - decay) * new, state.ema_params, g_params)

  metrics = {
      **d_metrics,
      **g_metrics,
      'grad_norm_g': optax.tree.norm(g_grads),
      'lr_g': train_state.learning_rate(optim.lr_g, optim.lr_min, num_steps)(state.step),
  }
  state = state.replace(
      step=state.step + 1,
      g_params=g_params,
      d_params=d_params,
      ema_params=ema_params,
      g_opt_state=g_opt_state,
      d_opt_state=d_opt_state,
  )
  return state, metrics


def inputs(config: Config, mesh: Mesh, stacked: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays of a batch that the step of `make_step_fn` takes after the state, in order: the images, and the labels
  of a conditional run. With `stacked`, those of `train.steps_per_call` batches, which `make_steps_fn` takes.
  """
  rows = sharding.by_rows(mesh, stacked)
  batch = (*((config.train.steps_per_call,) if stacked else ()), config.data.batch_size)
  found = {'image': jax.ShapeDtypeStruct((*batch, *config.image_shape), jnp.float32, sharding=rows)}
  if config.generator.num_classes:
    found['label'] = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=rows)
  return found


def make_step_fn(config: Config, mesh: Mesh, with_r1: bool) -> Callable[..., tuple[TrainState, Metrics]]:
  """The jitted, sharded step of a run: (state, *inputs) → (state, metrics), all draws made inside from state.rng.

  The state lies as `sharding.of_state` says and is donated, `inputs` are split by rows, and so is the noise, which is
  drawn for the global batch: a run does not depend on the number of devices. Not to be called inside another jit
  (`compilation.jit`); `train_step` may be.
  """
  step = _step_of_run(config, mesh)
  return _jit(lambda state, *batch: step(state, with_r1, *batch), config, mesh, stacked=False)


def make_steps_fn(config: Config, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
  """The same for K = `train.steps_per_call` steps in one program: (state, *inputs [K, B, ...]) → (state, metrics [K]).

  R1 is in the steps that `has_r1` says; those are counted by state.step, wherever a call begins.
  """
  step = _step_of_run(config, mesh)
  optim = config.optim

  def one(state, batch):
    lazy = optim.r1_gamma > 0 and optim.lazy_reg > 1
    return step(state, state.step % optim.lazy_reg == 0 if lazy else has_r1(optim, 0), *batch)

  return _jit(lambda state, *batches: jax.lax.scan(one, state, batches), config, mesh, stacked=True)


def by_step(metrics: Metrics, last: int, optim: OptimConfig) -> list[tuple[int, Metrics]]:
  """What `make_steps_fn` gave, on the host, as (number after the step, its metrics) of each step up to `last`."""
  count = len(next(iter(metrics.values())))
  steps = range(last - count + 1, last + 1)
  return [
      (step, {name: values[i] for name, values in metrics.items()
              if name != 'r1_penalty' or has_r1(optim, step - 1)}) for i, step in enumerate(steps)]


def _step_of_run(config: Config, mesh: Mesh) -> Callable:
  generator, discriminator = train_state.make_networks(config)
  schedule = train_state.make_schedule(config)

  label_dropout = config.generator.label_dropout if config.generator.num_classes else 0.0

  def step(state: TrainState, with_r1: bool | jax.Array, x_0: jax.Array, label: jax.Array | None = None):
    key = jax.random.fold_in(state.rng, state.step)
    draws = make_draws(key, x_0.shape, schedule.num_timesteps, config.generator.nz, label_dropout)
    return train_step(
        state, x_0, sharding.constrain_rows(draws, mesh), label, generator=generator, discriminator=discriminator,
        schedule=schedule, optim=config.optim, num_steps=config.train.num_steps, with_r1=with_r1,
        augmented=config.method == 'augmented_gan', mesh=mesh, accumulation=config.parallel.accumulation)

  return step


def _jit(function: Callable, config: Config, mesh: Mesh, stacked: bool) -> Callable:
  state = sharding.of_tree(train_state.abstract(config, sharding.of_state(mesh)))
  rows = sharding.of_tree(inputs(config, mesh, stacked)).values()
  return compilation.jit(
      function, mesh.devices.flat[0].platform, in_shardings=(state, *rows),
      out_shardings=(state, sharding.replicated(mesh)), donate_argnums=0)


def has_r1(optim: OptimConfig, step: int) -> bool:
  """Whether the step that starts from state.step == `step` carries the R1 penalty; step 0 does."""
  return optim.r1_gamma > 0 and step % optim.lazy_reg == 0


def variants(optim: OptimConfig, step: int) -> tuple[bool, ...]:
  """The values of `with_r1` that a run needs from `step` on, the one of `step` itself first."""
  first = has_r1(optim, step)
  return (first,) if optim.r1_gamma == 0 or optim.lazy_reg == 1 else (first, not first)


def _mean_over_microbatches(function, count: int, params, others, rows):
  """`function(params, others, rows)`, a tree of means over the rows, in `count` pieces of neighbouring rows."""
  if count == 1:
    return function(params, others, rows)

  def cut(leaf):
    return leaf.reshape(count, len(leaf) // count, *leaf.shape[1:]) if leaf.ndim else jnp.broadcast_to(leaf, count)

  pieces = jax.tree.map(cut, rows)

  def add(total, piece):
    return jax.tree.map(jnp.add, total, function(params, others, piece)), None

  shapes = jax.eval_shape(lambda: function(params, others, jax.tree.map(lambda leaf: leaf[0], pieces)))
  total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), pieces)
  return jax.tree.map(lambda leaf: leaf / count, total)
