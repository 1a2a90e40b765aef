"""The training step: D's update, then G's, then the EMA (paper, section 3.2), for any objective.

Pure functions: all random numbers are arguments, drawn by `make_draws` from one key; `Setup` holds all static settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddgan_jax import objectives, posthoc_ema, train_state
from ddgan_jax.config import Config, OptimConfig
from ddgan_jax.models import labels
from ddgan_jax.objectives import augmentation, penalties
from ddgan_jax.objectives.base import Metrics, Model, Objective, Rows, UpdateDraws
from ddgan_jax.objectives.penalties import GradientPenalty
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.train_state import ProfiledState, TrainState


class Draws(NamedTuple):
  """All random numbers of one training step; the updates of D and G share only x_0."""

  d: UpdateDraws
  g: UpdateDraws


def make_draws(
    key: jax.Array,
    shape: tuple[int, int, int, int],
    num_timesteps: int,
    latent_dim: int,
    label_dropout: float = 0.0,
    extra_noise: int = 0,
    augment: bool = False,
    condition_dropout: float = 0.0,
) -> Draws:
  """Draws all random numbers of a training step.

  Args:
    key: typed PRNG key, used once: `fold_in(state.rng, state.step)` in training.
    shape: (B, H, W, C) of the global batch.
    num_timesteps: T.
    latent_dim: nz.
    label_dropout: probability that a row's label is dropped, independent in the two updates.
    extra_noise: n of `UpdateDraws.extra_noise`.
    augment: whether to draw `UpdateDraws.augmentation`.
    condition_dropout: probability that a row's condition is dropped, independent in the two updates.
  """

  def update_draws(key):
    # One key per field; optional fields come last, so that they do not change the others.
    count = 6 + bool(label_dropout) + bool(extra_noise) + augment + bool(condition_dropout)
    t_key, noise_t_key, noise_tp1_key, z_key, posterior_key, dropout_key, *others = jax.random.split(key, count)
    others = iter(others)
    return UpdateDraws(
        t=jax.random.randint(t_key, shape[:1], 0, num_timesteps),
        noise_t=jax.random.normal(noise_t_key, shape),
        noise_tp1=jax.random.normal(noise_tp1_key, shape),
        z=jax.random.normal(z_key, (shape[0], latent_dim)),
        posterior_noise=jax.random.normal(posterior_key, shape),
        dropout_key=dropout_key,
        keep_label=jax.random.bernoulli(next(others), 1 - label_dropout, shape[:1]) if label_dropout else None,
        extra_noise=jax.random.normal(next(others), (shape[0], extra_noise, *shape[1:])) if extra_noise else None,
        augmentation=jax.random.uniform(next(others), (shape[0], augmentation.NUM_UNIFORMS)) if augment else None,
        keep_condition=(
            jax.random.bernoulli(next(others), 1 - condition_dropout, shape[:1]) if condition_dropout else None),
    )

  d_key, g_key = jax.random.split(key)
  return Draws(d=update_draws(d_key), g=update_draws(g_key))


@dataclasses.dataclass(frozen=True)
class Setup:
  """The static settings of a training step.

  Attributes:
    objective: the losses, the penalty and the pairs.
    model: the networks and the diffusion process.
    optim: settings of Adam and the EMA.
    num_steps: length of the cosine learning-rate schedules.
    mesh: the mesh over which the batch is sharded; None for a single device.
    accumulation: number of sequential microbatches per device; saves memory, same result.
  """

  objective: Objective
  model: Model
  optim: OptimConfig
  num_steps: int
  mesh: Mesh | None = None
  accumulation: int = 1

  def draws(self, key: jax.Array, shape: tuple[int, int, int, int]) -> Draws:
    """Draws the random numbers for a global batch of this shape; see `make_draws`."""
    generator = self.model.generator.config
    return make_draws(
        key, shape, self.model.schedule.num_timesteps, generator.nz,
        generator.label_dropout if generator.num_classes else 0.0, self.objective.extra_noise,
        bool(self.objective.has_discriminator and self.model.discriminator.config.augment),
        generator.condition_dropout if generator.condition_channels else 0.0)


def make_setup(config: Config, mesh: Mesh | None = None) -> Setup:
  """Makes the setup of a run."""
  model = Model(*train_state.make_networks(config), train_state.make_schedule(config))
  return Setup(
      objectives.make(config), model, config.optim, config.schedule_steps, mesh, config.parallel.accumulation)


def train_step(
    state: TrainState,
    x_0: jax.Array,
    draws: Draws,
    label: jax.Array | None = None,
    condition: jax.Array | None = None,
    *,
    setup: Setup,
    with_r1: bool | jax.Array,
) -> tuple[TrainState, Metrics]:
  """One training step: updates D against the current G, then G against the new D, then the EMA.

  Without a D it updates only G and the EMA.

  Both updates use the mean gradient over the global batch. The batch may be split over the devices of `setup.mesh` and
  into `setup.accumulation` microbatches per device: the result is the same up to rounding, as long as no group of the
  minibatch stddev is split.

  Args:
    state: the state at step s.
    x_0: [B, H, W, C] float32 in [-1, 1], the global batch.
    draws: all random numbers of the step.
    label: [B] int32 class labels of a conditional run, otherwise None.
    condition: [B, h, w, c] float32 of a run with `data.condition`, otherwise None.
    setup: the static settings.
    with_r1: whether to add the objective's penalty on D. A bool compiles one program per value; a bool scalar array
      compiles one program for both, and the penalty's metrics are 0 without it.

  Returns:
    The state at step s + 1, and a dict of float32 scalars: `loss_d`, `loss_g`, the parts that the objective returns,
    `grad_norm_d`, `grad_norm_g`, `lr_d` and `lr_g`; without a D only those of G.
  """
  optim = setup.optim
  g_optimizer, d_optimizer = train_state.make_optimizers(optim, setup.num_steps)
  row_indices = jnp.arange(x_0.shape[0])

  def make_rows(draws: UpdateDraws) -> Rows:
    dropped = label is not None and draws.keep_label is not None
    kept = jnp.where(draws.keep_label, label, labels.NONE) if dropped else label
    seen = condition
    if condition is not None and draws.keep_condition is not None:
      seen = jnp.where(draws.keep_condition[:, None, None, None], condition, 0)
    return Rows(x_0, draws, row_indices, kept, state.step, seen)

  d_params, d_opt_state, d_metrics = state.d_params, state.d_opt_state, {}
  if setup.objective.has_discriminator:
    d_grads, d_metrics = _mean_gradient(
        'd_gradient', functools.partial(_d_gradient, setup, with_r1), setup, d_params, state.g_params,
        (make_rows(draws.d), jnp.asarray(with_r1)))
    d_updates, d_opt_state = d_optimizer.update(d_grads, d_opt_state)
    d_params = optax.apply_updates(d_params, d_updates)
    d_metrics['grad_norm_d'] = optax.tree.norm(d_grads)
    if optim.beta2_final >= 0:
      d_metrics['beta2'] = d_opt_state.hyperparams['b2']
    if setup.objective.penalty.gamma_final is not None:
      d_metrics['r1_gamma'] = setup.objective.penalty.weight(state.step)
    d_metrics['lr_d'] = train_state.cosine(optim.lr_d, optim.lr_min, setup.num_steps)(state.step)

  # Fresh draws for the same images, against the updated D.
  g_grads, g_metrics = _mean_gradient(
      'g_gradient', functools.partial(_g_gradient, setup), setup, state.g_params, d_params, make_rows(draws.g))
  g_updates, g_opt_state = g_optimizer.update(g_grads, state.g_opt_state)
  g_params = optax.apply_updates(state.g_params, g_updates)

  decay = jnp.where(state.step == 0, 0.0, optim.ema_decay)  # excludes the initial G from the average
  ema_params = jax.tree.map(lambda ema, new: decay * ema + (1 - decay) * new, state.ema_params, g_params)

  metrics = {
      **d_metrics,
      **g_metrics,
      'grad_norm_g': optax.tree.norm(g_grads),
      'lr_g': train_state.cosine(optim.lr_g, optim.lr_min, setup.num_steps)(state.step),
  }
  state = state.replace(
      step=state.step + 1,
      g_params=g_params,
      d_params=d_params,
      ema_params=ema_params,
      g_opt_state=g_opt_state,
      d_opt_state=d_opt_state,
  )
  if isinstance(state, ProfiledState):
    state = state.replace(ema_profiles=posthoc_ema.update(state.ema_profiles, g_params, state.step))
  return state, metrics


def _d_gradient(setup: Setup, with_r1: bool | jax.Array, d_params, g_params, rows_and_r1):
  """The gradient of D's loss, and metrics. `rows_and_r1` holds with_r1 as an array, for use when it is not a bool."""
  rows, r1_now = rows_and_r1
  objective = setup.objective
  # Fakes are made outside the differentiated function, so that no gradient reaches G.
  pairs = objective.pairs(setup.model, g_params, rows)

  def gradient(penalized: bool):
    def loss_fn(params):
      return objective.discriminator_loss(setup.model, params, pairs, rows, penalized)

    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(d_params)
    return grads, {'loss_d': loss, **parts}

  def without():
    grads, parts = gradient(False)
    return grads, {**dict.fromkeys(objective.penalty.names, jnp.zeros(())), **parts}

  if isinstance(with_r1, bool):
    return gradient(with_r1)
  return jax.lax.cond(r1_now, lambda: gradient(True), without)


def _g_gradient(setup: Setup, g_params, d_params, rows: Rows):
  """The gradient of G's loss, and metrics."""
  def loss_fn(params):
    return setup.objective.generator_loss(setup.model, params, d_params, rows)

  (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(g_params)
  return grads, {'loss_g': loss, **parts}


def _mean_gradient(name: str, function: Callable, setup: Setup, params, others, rows):
  """Averages `function(params, others, rows)`, a tree of means over the rows, over all devices and microbatches."""
  with jax.named_scope(name):  # labels the operations in profiles
    function = functools.partial(_mean_over_microbatches, function, setup.accumulation)
    mapped = function if setup.mesh is None else sharding.mean_gradient(function, setup.mesh)
    return mapped(params, others, rows)


def abstract_batch(config: Config, mesh: Mesh, stacked: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of the batch of `make_step_fn`, by name and in order: `image`, and `label` and
  `condition` of a run that has them. With `stacked`, `train.steps_per_call` batches, for `make_steps_fn`.
  """
  rows = sharding.batch_sharding(mesh, stacked)
  batch = (*((config.train.steps_per_call,) if stacked else ()), config.data.batch_size)
  arrays = {'image': jax.ShapeDtypeStruct((*batch, *config.image_shape), jnp.float32, sharding=rows)}
  if config.generator.num_classes:
    arrays['label'] = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=rows)
  if config.data.condition_shape:
    arrays['condition'] = jax.ShapeDtypeStruct((*batch, *config.data.condition_shape), jnp.float32, sharding=rows)
  return arrays


def make_step_fn(config: Config, mesh: Mesh, with_r1: bool) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes the jitted, sharded training step: (state, *batch) → (state, metrics); it draws its noise from state.rng.

  The state is sharded by `sharding.state_sharding` and donated; the batch and its noise by `batch_sharding`. The noise
  is drawn for the global batch, so a run does not depend on the number of devices. Inside another jit it becomes part
  of that program (`compilation.jit`).
  """
  setup, names = make_setup(config, mesh), [*abstract_batch(config, mesh)]

  def one(state, *batch):
    return _step_of_run(setup, state, with_r1, **dict(zip(names, batch, strict=True)))

  return _jit(one, config, mesh, stacked=False)


def make_steps_fn(config: Config, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes one program of K = `train.steps_per_call` steps: (state, *batches [K, B, ...]) → (state, metrics [K]).

  Each step adds the penalty if it is due at its state.step.
  """
  setup, names = make_setup(config, mesh), [*abstract_batch(config, mesh)]

  def one(state, batch):
    penalized = setup.objective.penalty.is_due(state.step)
    return _step_of_run(setup, state, penalized, **dict(zip(names, batch, strict=True)))

  return _jit(lambda state, *batches: jax.lax.scan(one, state, batches), config, mesh, stacked=True)


def unstack_metrics(metrics: Metrics, last: int, penalty: GradientPenalty) -> list[tuple[int, Metrics]]:
  """Splits the metrics [K] of `make_steps_fn`, on the host, into one (step, metrics) per step, up to step `last`."""
  count = len(next(iter(metrics.values())))
  steps = range(last - count + 1, last + 1)
  return [
      (step, {name: values[i] for name, values in metrics.items()
              if name not in penalties.METRICS or penalty.is_due(step - 1)}) for i, step in enumerate(steps)]


def _step_of_run(
    setup: Setup, state: TrainState, with_r1: bool | jax.Array, image: jax.Array, label: jax.Array | None = None,
    condition: jax.Array | None = None
) -> tuple[TrainState, Metrics]:
  draws = sharding.constrain_rows(setup.draws(jax.random.fold_in(state.rng, state.step), image.shape), setup.mesh)
  return train_step(state, image, draws, label, condition, setup=setup, with_r1=with_r1)


def _jit(function: Callable, config: Config, mesh: Mesh, stacked: bool) -> Callable:
  state = sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh)))
  rows = sharding.tree_shardings(abstract_batch(config, mesh, stacked)).values()
  return compilation.jit(
      function, mesh.devices.flat[0].platform, in_shardings=(state, *rows),
      out_shardings=(state, sharding.replicated(mesh)), donate_argnums=0)


def _mean_over_microbatches(function, count: int, params, others, rows):
  """Averages `function(params, others, rows)`, a tree of means over the rows, over `count` blocks of adjacent rows."""
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
