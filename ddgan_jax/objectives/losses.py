"""The losses of G and D, and the pairs that they are taken of: pure functions of parameters, images and draws.

`train_step` says which method uses which.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddgan_jax import diffusion, models
from ddgan_jax.train_state import Params

Metrics = dict[str, jax.Array]


class HalfDraws(NamedTuple):
  """The random numbers of one network's half of a step.

  Attributes:
    t: [B] int32, uniform in 0 … T-1.
    noise_t, noise_tp1: [B, H, W, C] float32, standard normal, make the pair (x_t, x_{t+1}). For `gaussian` noise_tp1
      makes x_{t+1} from x_0; for `augmented_gan` noise_t makes x_t, and noise_tp1 is the noise that G starts from.
    z: [B, nz] float32, standard normal; `gaussian` puts zeros in its place.
    posterior_noise: [B, H, W, C] float32, standard normal, makes x_t_fake; unused by `gaussian`.
    dropout_key: typed PRNG key, folded with a row's place in the global batch; unused when `generator.dropout` is 0.
    keep_label: [B] bool, whether G and D are told the row's label; None tells them all that there are.
  """

  t: jax.Array
  noise_t: jax.Array
  noise_tp1: jax.Array
  z: jax.Array
  posterior_noise: jax.Array
  dropout_key: jax.Array
  keep_label: jax.Array | None = None


def discriminator_loss(
    d_params: Params,
    discriminator: models.Discriminator,
    x_t: jax.Array,
    x_t_fake: jax.Array,
    t: jax.Array,
    x_tp1: jax.Array,
    r1_gamma: float | None,
    label: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
  """Non-saturating loss of D with R1 on the less noisy neighbour (paper, section 3.2; Mescheder et al., 2018).

      mean softplus(-D(x_t)) + mean softplus(D(x_t_fake)) + r1_gamma / 2 * mean_i ||dD(x_t,i)/dx_t,i||²

  Args:
    d_params: parameters of D.
    discriminator: the module.
    x_t: [B, H, W, C] float32, real less noisy neighbours.
    x_t_fake: like x_t, drawn with the help of G; a constant here.
    t: [B] int32.
    x_tp1: like x_t, the noisier neighbours.
    r1_gamma: weight of the penalty, None leaves it out.
    label: [B] int32 of a conditional run, `labels.NONE` where it is withheld; real and fake of a row have the same.

  Returns:
    The loss and its parts.
  """

  def score(x):
    logits = models.apply(discriminator, d_params, x, t, x_tp1, **_told(label))
    return logits.sum(), logits

  parts = {}
  penalty = 0.0
  if r1_gamma is None:
    _, real_logits = score(x_t)
  else:
    # One forward pass serves the loss and the penalty. Rows are coupled only through the minibatch stddev.
    gradient, real_logits = jax.grad(score, has_aux=True)(x_t)
    penalty = 0.5 * r1_gamma * jnp.square(gradient).sum((1, 2, 3)).mean()
    parts['r1_penalty'] = penalty
  _, fake_logits = score(x_t_fake)
  loss_real = jax.nn.softplus(-real_logits).mean()
  loss_fake = jax.nn.softplus(fake_logits).mean()
  parts |= {
      'loss_d_real': loss_real,
      'loss_d_fake': loss_fake,
      'logits_real': real_logits.mean(),
      'logits_fake': fake_logits.mean(),
  }
  return loss_real + loss_fake + penalty, parts


def generator_loss(
    g_params: Params,
    d_params: Params,
    generator: models.Generator,
    discriminator: models.Discriminator,
    schedule: diffusion.Schedule,
    x_0: jax.Array,
    draws: HalfDraws,
    places: jax.Array,
    label: jax.Array | None = None,
    augmented: bool = False,
) -> jax.Array:
  """Non-saturating loss of G, through the posterior (paper, section 3.2): mean softplus(-D(x_t_fake, t, x_{t+1}))."""
  make_pairs = augmented_real_and_fake if augmented else real_and_fake
  _, x_tp1, x_t_fake = make_pairs(g_params, generator, schedule, x_0, draws, places, label)
  logits = models.apply(discriminator, d_params, x_t_fake, draws.t, x_tp1, **_told(label))
  return jax.nn.softplus(-logits).mean()


def gaussian_loss(
    g_params: Params,
    generator: models.Generator,
    schedule: diffusion.Schedule,
    x_0: jax.Array,
    draws: HalfDraws,
    places: jax.Array,
    label: jax.Array | None = None,
) -> jax.Array:
  """L2 loss of Gaussian diffusion (Ho et al., 2020, equation 14, and the same for x_0).

      mean (noise - G(x_{t+1}, t))²  or  mean (x_0 - G(x_{t+1}, t))²,  with x_{t+1} ~ q(x_{t+1} | x_0) by that noise
  """
  x_tp1 = diffusion.q_sample(schedule, x_0, draws.t + 1, draws.noise_tp1)
  output_fn = models.output_fn(generator, g_params, schedule, **_dropout(generator, draws, places), **_told(label))
  target = draws.noise_tp1 if generator.config.prediction == 'noise' else x_0
  return jnp.square(output_fn(x_tp1, draws.t, jnp.zeros_like(draws.z)) - target).mean()


def real_and_fake(g_params, generator, schedule, x_0, draws: HalfDraws, places, label=None):
  """x_t and x_{t+1} from q, and x_t_fake from q(x_t | x_{t+1}, G(x_{t+1}, t, z)).

  Args:
    g_params: parameters of G.
    generator, schedule: the module and the diffusion process.
    x_0: [B, H, W, C] float32 in [-1, 1].
    draws: random numbers of these rows.
    places: [B] int32, the rows' places in the global batch.
    label: [B] int32 of a conditional run, `labels.NONE` where it is withheld.

  Returns:
    (x_t, x_tp1, x_t_fake), each like x_0: what D is shown with draws.t.
  """
  x_t, x_tp1 = diffusion.q_sample_pair(schedule, x_0, draws.t, draws.noise_t, draws.noise_tp1)
  x_0_pred = models.generator_fn(
      generator, g_params, schedule, **_dropout(generator, draws, places), **_told(label))(x_tp1, draws.t, draws.z)
  x_t_fake = diffusion.sample_posterior(schedule, x_0_pred, x_tp1, draws.t, draws.posterior_noise)
  return x_t, x_tp1, x_t_fake


def augmented_real_and_fake(g_params, generator, schedule, x_0, draws: HalfDraws, places, label=None):
  """x_t and x_t_fake: a real image and one made from noise, both diffused to level t (paper, ablation study).

  D is for pairs, but here there is no x_{t+1} that could tell it anything: zeros take its place. Level 0, at which D
  sees the images as they are, is one of the T levels. For arguments and results see `real_and_fake`.
  """
  x_t = diffusion.q_sample(schedule, x_0, draws.t, draws.noise_t)
  last = jnp.full_like(draws.t, schedule.num_timesteps - 1)
  x_0_pred = models.generator_fn(
      generator, g_params, schedule, **_dropout(generator, draws, places), **_told(label))(
          draws.noise_tp1, last, draws.z)
  x_t_fake = diffusion.q_sample(schedule, x_0_pred, draws.t, draws.posterior_noise)
  return x_t, jnp.zeros_like(x_t), x_t_fake


def _dropout(generator, draws: HalfDraws, places) -> dict:
  if not generator.config.dropout:
    return {}
  return {'deterministic': False, 'places': places, 'rngs': {'dropout': draws.dropout_key}}


def _told(label: jax.Array | None) -> dict:
  return {} if label is None else {'label': label}
