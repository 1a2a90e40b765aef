"""Initial weights, all drawn in one loop, which compiles faster than one random generator per array."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

Uniform = Callable[[jax.Array, tuple[int, ...]], jax.Array]  # key and shape → float32 in [-1, 1)

_CHUNK = 2**16
_uniform: contextvars.ContextVar[Uniform] = contextvars.ContextVar(
    'uniform', default=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0))


def default_init(scale: float = 1.0) -> Callable[..., jax.Array]:
  """Uniform variance scaling with fan_avg for kernels [..., in, out]: variance `scale * 2 / (fan_in + fan_out)`.

  `scale=0` means 1e-10, as in the original.
  """

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return (math.sqrt(6 * (scale or 1e-10) / fans) * _uniform.get()(key, shape)).astype(dtype)

  return init


def draw(key: jax.Array, init: Callable[[jax.Array], Any]) -> Any:
  """Calls `init(key)`, with all random numbers of `default_init` sliced from one vector drawn from `key`."""
  drawn = 0

  def count(key, shape):
    nonlocal drawn
    drawn += math.prod(shape)
    return jnp.zeros(shape)

  with _draw_by(count):
    jax.eval_shape(init, key)
  pool_key, key = jax.random.split(key)
  keys = jax.random.split(pool_key, max(1, -(-drawn // _CHUNK)))
  # Without the loop, XLA would recompute all numbers for every array.
  pool = jax.lax.map(lambda key: jax.random.uniform(key, (_CHUNK,), minval=-1.0), keys).reshape(-1)
  begin = 0

  def cut(key, shape):
    nonlocal begin
    begin += math.prod(shape)
    return pool[begin - math.prod(shape):begin].reshape(shape)

  with _draw_by(cut):
    return init(key)


@contextlib.contextmanager
def _draw_by(uniform: Uniform) -> Iterator[None]:
  token = _uniform.set(uniform)
  try:
    yield
  finally:
    _uniform.reset(token)
