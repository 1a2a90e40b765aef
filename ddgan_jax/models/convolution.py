"""Convolutions in the one layout for which XLA has fast code on CPUs, in loops too."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir


def use_one_layout_on_cpus(enabled: bool = True) -> None:
  """From now on JAX writes convolutions for CPUs as those of [N, spatial, C] by [spatial, I, O], with transposes.

  That is the form that XLA hands to Eigen. It brings others, such as the gradients of those with respect to inputs and
  kernels, into it by itself, but not in the body of a loop or a conditional, where kernel gradients then take more than
  a hundred times as long (jaxlib 0.10.2): those of several steps in one program, of accumulation, or through the
  sampler. Results are the same up to rounding, and programs without loops as fast. Left as they are: other platforms,
  grouped convolutions, those of explicitly sharded arrays, and those whose kernel is larger than the input, where XLA
  exchanges the two.

  This holds for all of the process, and for what is lowered after it; `jax.clear_caches()` forgets what was before.
  Importing `ddgan_jax.models` calls it. Does nothing with a JAX that keeps its lowering rules elsewhere than 0.10.

  Args:
    enabled: False goes back to JAX's own way.
  """
  if _JAX_LOWER is not None:
    mlir.register_lowering(lax.conv_general_dilated_p, _lower if enabled else _JAX_LOWER, platform='cpu')


def _lower(ctx: Any, x: Any, kernel: Any, **params: Any) -> Any:
  given = params['dimension_numbers']
  rank = len(given.lhs_spec)
  batched = (0, rank - 1, *range(1, rank - 1))  # where N, C and the spatial dimensions are
  wanted = lax.ConvDimensionNumbers(batched, (rank - 1, rank - 2, *range(rank - 2)), batched)
  spatial_sizes = [
      math.prod(aval.shape[i] for i in spec[2:]) for aval, spec in zip(ctx.avals_in, (given.lhs_spec, given.rhs_spec))]
  if (given == wanted or params['feature_group_count'] != 1 or params['batch_group_count'] != 1
      or spatial_sizes[1] > spatial_sizes[0]
      or any(any(aval.sharding.spec) for aval in (*ctx.avals_in, *ctx.avals_out))):
    return _JAX_LOWER(ctx, x, kernel, **params)

  def convolve(x, kernel):
    x = lax.transpose(x, _order(given.lhs_spec, wanted.lhs_spec))
    kernel = lax.transpose(kernel, _order(given.rhs_spec, wanted.rhs_spec))
    y = lax.conv_general_dilated_p.bind(x, kernel, **{**params, 'dimension_numbers': wanted, 'out_sharding': None})
    return lax.transpose(y, _order(wanted.out_spec, given.out_spec))

  return mlir.lower_fun(convolve, multiple_results=False)(ctx, x, kernel)


def _order(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
  """The permutation that takes dimensions at the places `before` to the places `after`."""
  return [before[after.index(place)] for place in range(len(before))]


def _jax_lower() -> Any:
  """JAX's own rule, to which there is no public way; None if it is not where it was."""
  try:
    rule = jax._src.interpreters.mlir._platform_specific_lowerings['cpu'][lax.conv_general_dilated_p].rule
  except (AttributeError, KeyError):
    return None
  return getattr(rule, 'jax_rule', rule)  # of this module, when it is loaded again


_JAX_LOWER = _lower.jax_rule = _jax_lower()
