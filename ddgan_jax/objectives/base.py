"""The interface of a training objective, for the training step, the sampler and the benchmark.

One training step, with fresh draws in `rows` for each update:

    D minimises objective.discriminator_loss(model, d_params, pairs, rows, penalized), where
                pairs = objective.pairs(model, g_params, rows) are constants
    G minimises objective.generator_loss(model, g_params, d_params, rows), against the updated D

Every method is a pure function; the fields of an objective hold its settings.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion, models
from ddgan_jax.config import Config, ConfigError
from ddgan_jax.models import conditions
from ddgan_jax.objectives import augmentation, penalties
from ddgan_jax.objectives.penalties import GradientPenalty
from ddgan_jax.sampling import GeneratorFn

Params = Any
Metrics = dict[str, jax.Array]
DiscriminatorFn = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


class UpdateDraws(NamedTuple):
  """The random numbers of one network's update.

  Attributes:
    t: [B] int32, uniform in 0 … T-1.
    noise_t, noise_tp1: [B, H, W, C] float32, standard normal. `ddgan` makes the pair (x_t, x_{t+1}) from them.
    z: [B, nz] float32, standard normal.
    posterior_noise: [B, H, W, C] float32, standard normal. `ddgan` makes x_t_fake from it.
    dropout_key: typed PRNG key, folded with the row index; unused when `generator.dropout` is 0.
    keep_label: [B] bool, mask of the rows whose label is kept; None keeps all labels.
    extra_noise: [B, n, H, W, C] float32, standard normal, with n = `Objective.extra_noise`; None if n = 0.
    augmentation: [B, 7] float32, uniform in [0, 1), for `augmentation.augment`; None if D sees the images as they are.
    keep_condition: [B] bool, mask of the rows whose condition is kept; None keeps all conditions.
  """

  t: jax.Array
  noise_t: jax.Array
  noise_tp1: jax.Array
  z: jax.Array
  posterior_noise: jax.Array
  dropout_key: jax.Array
  keep_label: jax.Array | None = None
  extra_noise: jax.Array | None = None
  augmentation: jax.Array | None = None
  keep_condition: jax.Array | None = None


class Rows(NamedTuple):
  """Rows of the global batch, all or those of one device or microbatch, in the update of D or of G.

  Attributes:
    x_0: [B, H, W, C] float32 in [-1, 1].
    draws: the random numbers of these rows.
    row_indices: [B] int32, indices in the global batch.
    label: [B] int32 of a conditional run, `labels.NONE` where dropped; otherwise None.
    step: int32 scalar, training steps done so far, for weights that change during training.
    condition: [B, h, w, c] float32 of a run with data.condition, zeros where dropped; otherwise None.
  """

  x_0: jax.Array
  draws: UpdateDraws
  row_indices: jax.Array
  label: jax.Array | None
  step: jax.Array
  condition: jax.Array | None = None


class Pairs(NamedTuple):
  """The inputs of D: (x_t, t, x_tp1) is real, (x_t_fake, t, x_tp1) is fake.

  Attributes:
    x_t, x_t_fake: like x_0, the real and the generated less noisy neighbour.
    t: [B] int32.
    x_tp1: like x_0, the noisier neighbour; None for a D that is not conditioned on it.
    x_0_pred: like x_0, the prediction from which x_t_fake is sampled.
  """

  x_t: jax.Array
  x_t_fake: jax.Array
  t: jax.Array
  x_tp1: jax.Array | None
  x_0_pred: jax.Array


@dataclasses.dataclass(frozen=True)
class Model:
  """G, D and the diffusion process of a run, as functions of parameters and rows.

  Attributes:
    generator, discriminator: Flax modules; `discriminator` is None if the objective has none.
    schedule: the tables of the T training levels.
  """

  generator: models.Generator | models.MlpGenerator
  discriminator: models.Discriminator | models.MlpDiscriminator | None
  schedule: diffusion.Schedule

  def predict(self, g_params: Params, rows: Rows) -> GeneratorFn:
    """G during training, (x_tp1, t, z) → x_0_pred, with the dropout, labels and conditions of `rows`."""
    return models.generator_fn(self.generator, g_params, self.schedule, **self._options(rows))

  def output(self, g_params: Params, rows: Rows) -> GeneratorFn:
    """Like `predict`, but returns the network's output, such as the noise, without conversion to x_0."""
    return models.output_fn(self.generator, g_params, self.schedule, **self._options(rows))

  def discriminator_fn(self, d_params: Params, rows: Rows) -> DiscriminatorFn:
    """D with the labels, conditions and augmentation of `rows`, (x_t, t, x_tp1) → logits [B]; zeros for a None."""
    uniforms = rows.draws.augmentation

    def augment(x):
      return x if uniforms is None else augmentation.augment(x, uniforms, self.discriminator.config.augment)

    options = {} if rows.label is None else {'label': rows.label}
    if rows.condition is not None:
      # At the size of the image, so that both are moved and cut in the same way.
      options['condition'] = augment(
          rows.condition if uniforms is None else conditions.enlarge(rows.condition, rows.x_0.shape[1]))

    def discriminator_fn(x_t, t, x_tp1):
      x_tp1 = jnp.zeros_like(x_t) if x_tp1 is None else augment(x_tp1)
      return models.apply(self.discriminator, d_params, augment(x_t), t, x_tp1, **options)

    return discriminator_fn

  def _options(self, rows: Rows) -> dict[str, Any]:
    options = {}
    if self.generator.config.dropout:
      options = {'deterministic': False, 'row_indices': rows.row_indices, 'rngs': {'dropout': rows.draws.dropout_key}}
    given = {'label': rows.label, 'condition': rows.condition}
    return options | {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
  """What G and D minimise, and how the trained G samples.

  `config.checks.PREDICTIONS` lists the `generator.prediction` values of each method, because a config is checked before
  its objective exists.

  Attributes:
    penalty: gradient penalty on D and its interval.
    name: `config.method`.
    has_discriminator: whether there is a D; without one only `generator_loss` is called.
    conditions_on_x_tp1: whether D sees x_{t+1}.
    samples_like_original: whether the original DDGAN's sampler can sample the trained G.
    can_respace: whether the trained G can be sampled in any number of steps that divides T.
    extra_noise: number of arrays in `UpdateDraws.extra_noise`.
  """

  penalty: GradientPenalty = penalties.NONE
  name: ClassVar[str]
  has_discriminator: ClassVar[bool] = True
  conditions_on_x_tp1: ClassVar[bool] = True
  samples_like_original: ClassVar[bool] = True
  can_respace: ClassVar[bool] = False
  extra_noise: ClassVar[int] = 0

  def pairs(self, model: Model, g_params: Params, rows: Rows) -> Pairs:
    """Samples the real and fake inputs of D."""
    raise NotImplementedError(f'{self.name} has no discriminator')

  def discriminator_loss(
      self, model: Model, d_params: Params, pairs: Pairs, rows: Rows, penalized: bool) -> tuple[jax.Array, Metrics]:
    """D's loss, a mean over the rows.

    Args:
      model: for `model.discriminator_fn`.
      d_params: D's parameters; the loss is differentiated with respect to them.
      pairs: the result of `pairs` for these rows, constants.
      rows: the rows.
      penalized: whether to add the penalty.

    Returns:
      The loss, and its parts as scalars to log; they include `penalty.names` if and only if `penalized`.
    """
    raise NotImplementedError(f'{self.name} has no discriminator')

  @abc.abstractmethod
  def generator_loss(
      self, model: Model, g_params: Params, d_params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
    """G's loss, a mean over the rows, and its parts as scalars to log; d_params are constants."""

  def make_schedule(self, config: Config) -> diffusion.Schedule:
    """Makes the tables of `config.diffusion`, with an identity posterior if G predicts x_t itself."""
    schedule = diffusion.make_schedule(**vars(config.diffusion))
    return diffusion.identity_posterior(schedule) if config.generator.prediction == 'x_t' else schedule

  def default_steps(self, trained: int) -> int:
    """The default number of sampling steps of a G trained with T = `trained`."""
    return trained

  def make_sampler(
      self, predict: GeneratorFn, schedule: diffusion.Schedule, num_timesteps: int | None = None
  ) -> tuple[GeneratorFn, diffusion.Schedule]:
    """Makes the generator function and schedule for `sampling.sample`.

    Args:
      predict: G, as `models.generator_fn` returns it.
      schedule: the tables of the T training levels.
      num_timesteps: sampling steps; None is `default_steps`.

    Returns:
      (generator_fn, schedule) for that number of steps.

    Raises:
      ConfigError: G cannot be sampled in that number of steps.
    """
    trained = schedule.num_timesteps
    default = self.default_steps(trained)
    num_timesteps = default if num_timesteps is None else num_timesteps
    if num_timesteps != default and not self.can_respace:
      raise ConfigError(
          f'num_timesteps is {num_timesteps}; use {default}, the only number of steps of a run with '
          f'method={self.name!r}')
    if num_timesteps < 1 or trained % num_timesteps:
      raise ConfigError(f'num_timesteps is {num_timesteps}; use a divisor of {trained}, the number of training levels')
    if num_timesteps == trained:
      return predict, schedule
    schedule, t_long = diffusion.respace(schedule, num_timesteps)
    return lambda x_tp1, t, z: predict(x_tp1, jnp.asarray(t_long)[t], z), schedule
