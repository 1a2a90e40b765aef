"""Checks of the arguments of public functions; each error is one sentence that names the argument.

Types, shapes and dtypes are checked under jit, too; values only of concrete arrays. The checks add nothing to a traced
program. A wrong type or dtype raises TypeError, a wrong shape or value ValueError.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def floats(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Requires an array of floating point numbers.

  Args:
    name: name of the argument.
    x: its value.
    axes: names of its axes, such as 'B H W C'; '...' for any number of axes.
    **sizes: required sizes of axes, by name.
  """
  hint = ', such as x / 127.5 - 1' if getattr(x, 'dtype', None) == np.uint8 else ''
  _array(name, x, (jnp.floating,), 'floating point', hint, axes, sizes)


def integers(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Requires an array of integers; see `floats`."""
  _array(name, x, (jnp.integer,), 'integers', '', axes, sizes)


def numbers(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Requires an array of integers or floating point numbers; see `floats`."""
  _array(name, x, (jnp.integer, jnp.floating), 'numbers', '', axes, sizes)


def uint8(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Requires an array of uint8; see `floats`."""
  hint = ', such as sampling.to_uint8(images)' if jnp.issubdtype(getattr(x, 'dtype', None), jnp.floating) else ''
  _array(name, x, (np.uint8,), 'uint8', hint, axes, sizes)


def _array(name: str, x: Any, kinds: tuple, expected: str, hint: str, axes: str, sizes: dict[str, int]) -> None:
  shape = '' if axes == '...' else ' [' + ', '.join(
      f'{axis}={sizes[axis]}' if axis in sizes else axis for axis in axes.split()) + ']'
  if not hasattr(x, 'shape') or not hasattr(x, 'dtype'):
    raise TypeError(f'{name} is {describe(x)}; use an array of {expected}{shape}')
  message = f'{name} is {x.dtype} {_listed(x.shape)}; use {expected}{shape}{hint}'
  if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
    raise TypeError(message)
  if axes == '...':
    return
  names = axes.split()
  if len(names) != len(x.shape) or any(sizes.get(axis, size) != size for axis, size in zip(names, x.shape)):
    raise ValueError(message)


def broadcasts(name: str, x: Any, other: str, shape: Sequence[int]) -> None:
  """Requires an array that broadcasts to `shape`, the shape of the argument `other`."""
  trailing = shape[len(shape) - len(x.shape):]
  if len(x.shape) > len(shape) or any(size not in (1, whole) for size, whole in zip(x.shape, trailing)):
    raise ValueError(f'{name} has shape {_listed(x.shape)}; use {_listed(shape)}, the shape of {other}')


def values(name: str, x: Any, low: int, high: int, meaning: str = '') -> None:
  """Requires values in low … high; tracers pass."""
  if isinstance(x, jax.core.Tracer) or not getattr(x, 'is_fully_addressable', True) or not np.size(x):
    return
  x = np.asarray(x)
  for found in (x.min(), x.max()):
    if not low <= found <= high:
      raise ValueError(f'{name} contains {found}; use values in {low} … {high}{meaning and f" ({meaning})"}')


def finite(name: str, x: np.ndarray) -> None:
  """Requires an array on the host without NaN and infinity."""
  if not np.isfinite(x).all():
    raise ValueError(f'{name} contains NaN or infinity; use finite values')


def whole(name: str, value: Any, low: int, high: int | None = None, meaning: str = '') -> None:
  """Requires an integer in low … high; tracers and integer JAX arrays pass, so that nothing waits for a device."""
  if isinstance(value, jax.core.Tracer) or isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
    return
  integer(name, value)
  limit = f'a value in {low} … {high}{meaning and f" ({meaning})"}' if high is not None else f'at least {low}'
  if operator.index(value) < low or (high is not None and operator.index(value) > high):
    raise ValueError(f'{name} is {value}; use {limit}')


def integer(name: str, value: Any) -> None:
  """Requires a Python or NumPy integer."""
  if isinstance(value, (bool, np.ndarray, jax.Array)) or not hasattr(value, '__index__'):
    raise TypeError(f'{name} is {describe(value)}; use an integer')


def shape(name: str, value: Any, *axes: str) -> None:
  """Requires positive integers, one per axis of one of the alternatives `axes`; a size may be symbolic."""
  expected = ' or '.join(f'({", ".join(names.split())})' for names in axes)
  if not isinstance(value, Sequence) or len(value) not in {len(names.split()) for names in axes}:
    raise ValueError(f'{name} is {describe(value)}; use {expected}')
  if any(size is None or isinstance(size, (bool, float, str)) or (isinstance(size, (int, np.integer)) and size < 1)
         for size in value):
    raise ValueError(f'{name} is {describe(value)}; use positive integers {expected}')


def key(name: str, value: Any) -> None:
  """Requires one typed PRNG key, as `jax.random.key` returns."""
  dtype = getattr(value, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or value.shape:
    raise TypeError(f'{name} is {describe(value)}; use one typed PRNG key, such as jax.random.key(seed)')


def instance(name: str, value: Any, kind: type, how: str = '') -> None:
  """Requires an instance of `kind`; `how` ends the sentence with how to get one."""
  if not isinstance(value, kind):
    raise TypeError(f'{name} is {describe(value)}; use a {kind.__name__}{how and f" ({how})"}')


def function(name: str, value: Callable, arguments: str) -> None:
  """Requires a callable."""
  if not callable(value):
    raise TypeError(f'{name} is {describe(value)}; use a function of {arguments}')


def _listed(shape: Sequence[int]) -> str:
  return f'[{", ".join(map(str, shape))}]'


def describe(value: Any) -> str:
  """A short description: small values as they are, arrays by dtype and shape, others by type."""
  if hasattr(value, 'dtype') and hasattr(value, 'shape'):
    return f'{value.dtype} {_listed(value.shape)}'
  if value is None or isinstance(value, (bool, int, float, str, tuple)) and len(repr(value)) <= 60:
    return repr(value)
  return f'a {type(value).__name__}'
