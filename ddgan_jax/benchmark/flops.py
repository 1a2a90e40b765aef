"""Counts the FLOPs of a function from the shapes in its jaxpr.

Only convolutions and matrix products are counted, a multiply-add as two FLOPs, as is usual for the utilisation of
matrix units; element-wise operations, norms and softmax are not. XLA's count for a compiled program (`cost_analysis`)
includes those, excludes products with a convolution's padding, and counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddgan_jax import train_state, train_step
from ddgan_jax.config import Config
from ddgan_jax.models import conditions, labels


def count(function: Callable, *args: Any) -> int:
  """FLOPs of one call; arguments may be `jax.ShapeDtypeStruct`s. `lax.cond` counts as its cheapest branch."""
  return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


@functools.lru_cache(maxsize=8)
def step_flops(config: Config, with_r1: bool) -> float:
  """FLOPs per image of a training step, as the method requires, without the recomputation of `remat`."""
  config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, remat=False, accumulation=1))
  setup = train_step.make_setup(config)
  rows = config.discriminator.stddev_group

  def step(state, x_0, condition=None):
    draws = setup.draws(state.rng, x_0.shape)
    return train_step.train_step(state, x_0, draws, None, condition, setup=setup, with_r1=with_r1)

  x_0 = jax.ShapeDtypeStruct((rows, *config.image_shape), jnp.float32)
  given = [jax.ShapeDtypeStruct((rows, *shape), jnp.float32)] if (shape := config.data.condition_shape) else []
  return count(step, train_state.abstract_state(config, None), x_0, *given) / rows


@functools.lru_cache(maxsize=8)
def sample_flops(config: Config) -> float:
  """FLOPs per image of sampling, with the objective's default number of evaluations of G."""
  params = train_state.abstract_state(config, None).ema_params
  options = dict(label=labels.timing_label(config.generator), condition=conditions.timing_condition(config))
  _, schedule = train_state.make_sampler(config, params, **options)

  def evaluate(params, x, t, z):
    generator_fn, _ = train_state.make_sampler(config, params, **options)
    return generator_fn(x, t, z)

  x = jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
  t, z = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, config.generator.nz), jnp.float32)
  return schedule.num_timesteps * count(evaluate, params, x, t, z)


def _jaxpr_flops(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    elif name == 'conv_general_dilated':
      total += _conv_flops(equation)
    else:
      inner = [_jaxpr_flops(each) for each in _inner_jaxprs(params)]
      total += params.get('length', 1) * sum(inner) if name != 'cond' else min(inner)
  return total


def _conv_flops(equation: Any) -> int:
  _, kernel = equation.invars
  _, in_channels, *space = equation.params['dimension_numbers'].rhs_spec
  sums = math.prod(kernel.aval.shape[axis] for axis in (in_channels, *space))
  # A dilated input is mostly zeros, whose products are not needed.
  return 2 * equation.outvars[0].aval.size * sums // math.prod(equation.params['lhs_dilation'])


def _inner_jaxprs(params: dict[str, Any]):
  for value in params.values():
    for each in value if isinstance(value, (tuple, list)) else (value,):
      each = getattr(each, 'jaxpr', each)
      if hasattr(each, 'eqns'):
        yield each
