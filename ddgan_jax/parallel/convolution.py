"""Fast convolutions inside loops on CPUs."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir

_local = threading.local()


@contextlib.contextmanager
def cpu_convolution_layout(enabled: bool = True) -> Iterator[None]:
  """Context in which this thread lowers convolutions for CPUs as [N, spatial, C] by [spatial, I, O], with transposes.

  XLA computes convolutions in this layout with Eigen. It converts other layouts to it, but not inside loops and
  conditionals (several steps per program, accumulation, gradients through the sampler), where kernel gradients are then
  over a hundred times slower (jaxlib 0.10.2). Results are the same up to rounding. Not changed: other platforms,
  grouped convolutions, explicitly sharded arrays, and kernels larger than the input, which XLA swaps with the input.

  Has no effect if JAX stores its lowering rules elsewhere than 0.10 does. `enabled=False` restores JAX's rule.
  """
  _install()
  before = getattr(_local, 'enabled', False)
  _local.enabled = enabled
  try:
    yield
  finally:
    _local.enabled = before


@functools.cache
def _install() -> None:
  """Registers a lowering rule that is JAX's own outside of `cpu_convolution_layout`."""
  jax_rule = _jax_rule()
  if jax_rule is None:
    return
  rule = functools.partial(_lower, jax_rule)
  rule.jax_rule = jax_rule
  mlir.register_lowering(lax.conv_general_dilated_p, rule, platform='cpu')


def _jax_rule() -> Any:
  """JAX's own rule, which has no public API; None if it has moved."""
  try:
    rule = jax._src.interpreters.mlir._platform_specific_lowerings['cpu'][lax.conv_general_dilated_p].rule
  except (AttributeError, KeyError):
    return None
  return getattr(rule, 'jax_rule', rule)  # ours, if this module is reloaded


def _lower(jax_rule: Any, ctx: Any, x: Any, kernel: Any, **params: Any) -> Any:
  given = params['dimension_numbers']
  rank = len(given.lhs_spec)
  batched = (0, rank - 1, *range(1, rank - 1))  # positions of N, C and the spatial dimensions
  wanted = lax.ConvDimensionNumbers(batched, (rank - 1, rank - 2, *range(rank - 2)), batched)
  spatial_sizes = [
      math.prod(aval.shape[i] for i in spec[2:]) for aval, spec in zip(ctx.avals_in, (given.lhs_spec, given.rhs_spec))]
  if (not getattr(_local, 'enabled', False) or given == wanted
      or params['feature_group_count'] != 1 or params['batch_group_count'] != 1
      or spatial_sizes[1] > spatial_sizes[0]
      or any(any(aval.sharding.spec) for aval in (*ctx.avals_in, *ctx.avals_out))):
    return jax_rule(ctx, x, kernel, **params)

  def convolve(x, kernel):
    x = lax.transpose(x, _order(given.lhs_spec, wanted.lhs_spec))
    kernel = lax.transpose(kernel, _order(given.rhs_spec, wanted.rhs_spec))
    y = lax.conv_general_dilated_p.bind(x, kernel, **{**params, 'dimension_numbers': wanted, 'out_sharding': None})
    return lax.transpose(y, _order(wanted.out_spec, given.out_spec))

  return mlir.lower_fun(convolve, multiple_results=False)(ctx, x, kernel)


def _order(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
  """The permutation that moves dimensions from positions `before` to positions `after`."""
  return [before[after.index(place)] for place in range(len(before))]
