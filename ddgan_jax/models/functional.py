"""Networks as pure functions, traced once per set of shapes."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from ddgan_jax.parallel import compilation


@functools.partial(compilation.jit, static_argnames=('module', 'deterministic'))
def apply(module: nn.Module, params: Any, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> jax.Array:
  """Computes `module.apply({'params': params}, *args, **kwargs)`.

  The inner jit caches the trace: both passes of G in a training step, with and without R1, share one. The operations
  are the same.
  """
  if deterministic is not None:
    kwargs['deterministic'] = deterministic
  return module.apply({'params': params}, *args, **kwargs)
