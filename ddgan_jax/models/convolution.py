"""Convolutions in the one layout for which XLA has fast code on CPUs, in loops too."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir

# JAX's own rule, which has no public way to it.
_RULES = getattr(jax._src.interpreters.mlir, '_platform_specific_lowerings', {}).get('cpu', {})
_JAX_LOWER = getattr(_RULES.get(lax.conv_general_dilated_p), 'rule', None)


def use_one_layout_on_cpus(enabled: bool = True) -> None:
  """From now on JAX writes every convolution for a CPU as one of [N, spatial, C] by [spatial, I, O], with transposes.

  Importing `ddgan_jax.models` calls this, and False goes back to JAX's own way, for what is traced after it.

  That is the form that XLA hands to Eigen. It brings others, such as the gradients of those with respect to inputs and
  kernels, into it by itself, but not in the body of a loop or a conditional, where they then take up to a hundred times
  as long (jaxlib 0.10.2): the gradients of several steps in one program, of accumulation, or through the sampler. The
  results are the same, and so are programs without loops. Other platforms are left as they are, and so is where XLA
  exchanges the two arguments, with less to compute: if the kernel is larger than the input.

  Does nothing with a JAX that does not keep its lowering rules where 0.10 does.
  """
  if _JAX_LOWER is not None:
    mlir.register_lowering(lax.conv_general_dilated_p, _lower if enabled else _JAX_LOWER, platform='cpu')


def _lower(ctx: Any, x: Any, kernel: Any, **params: Any) -> Any:
  given = params['dimension_numbers']
  rank = len(given.lhs_spec)
  batched = (0, rank - 1, *range(1, rank - 1))  # where N, C and the spatial dimensions are
  wanted = lax.ConvDimensionNumbers(batched, (rank - 1, rank - 2, *range(rank - 2)), batched)
  sharded = any(getattr(params.get('out_sharding'), 'spec', ()))  # by an explicit mesh
  if given == wanted or params['batch_group_count'] != 1 or sharded:
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
