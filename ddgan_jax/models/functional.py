"""Networks as pure functions, traced once for all the places and programs that call them."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from ddgan_jax.parallel import compilation


@functools.partial(compilation.jit, static_argnames=('module', 'deterministic'))
def apply(module: nn.Module, params: Any, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> jax.Array:
  """`module.apply({'params': params}, *args, **kwargs)`.

  Being jitted by itself it is traced once for each set of shapes: G's two passes in a step, in the step with R1 and in
  the one without, share one trace. XLA gets the same operations.
  """
  if deterministic is not None:
    kwargs['deterministic'] = deterministic
  return module.apply({'params': params}, *args, **kwargs)
