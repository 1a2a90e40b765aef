"""Checks of what callers pass to public functions: one sentence that names the argument.

Types, shapes and dtypes are checked of tracers too, values of concrete arrays only. Nothing is added to a program that
is being traced. What is refused raises TypeError or ValueError.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def floats(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Refuses all but an array of floating point numbers.

  Args:
    name: of the argument.
    x: what was passed for it.
    axes: names of its axes, such as 'B H W C'; '...' is any number of them.
    **sizes: of the axes whose size is known.
  """
  hint = '; use x / 127.5 - 1' if getattr(x, 'dtype', None) == np.uint8 else ''
  _array(name, x, (jnp.floating,), 'floating point', hint, axes, sizes)


def integers(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Refuses all but an array of integers; see `floats`."""
  _array(name, x, (jnp.integer,), 'integers', '', axes, sizes)


def numbers(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Refuses all but an array of integers or floating point numbers; see `floats`."""
  _array(name, x, (jnp.integer, jnp.floating), 'numbers', '', axes, sizes)


def uint8(name: str, x: Any, axes: str = '...', **sizes: int) -> None:
  """Refuses all but an array of uint8; see `floats`."""
  hint = '; use sampling.to_uint8' if jnp.issubdtype(getattr(x, 'dtype', None), jnp.floating) else ''
  _array(name, x, (np.uint8,), 'uint8', hint, axes, sizes)


def _array(name: str, x: Any, kinds: tuple, expected: str, hint: str, axes: str, sizes: dict[str, int]) -> None:
  shape = '' if axes == '...' else ' [' + ', '.join(
      f'{axis}={sizes[axis]}' if axis in sizes else axis for axis in axes.split()) + ']'
  if not hasattr(x, 'shape') or not hasattr(x, 'dtype'):
    raise TypeError(f'{name}: found {describe(x)}, must be an array of {expected}{shape}')
  message = f'{name}: found {x.dtype} {_listed(x.shape)}, must be {expected}{shape}{hint}'
  if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
    raise TypeError(message)
  if axes == '...':
    return
  names = axes.split()
  if len(names) != len(x.shape) or any(sizes.get(axis, size) != size for axis, size in zip(names, x.shape)):
    raise ValueError(message)


def broadcasts(name: str, x: Any, other: str, shape: Sequence[int]) -> None:
  """Refuses an array that does not broadcast to the shape of the argument `other`."""
  trailing = shape[len(shape) - len(x.shape):]
  if len(x.shape) > len(shape) or any(size not in (1, whole) for size, whole in zip(x.shape, trailing)):
    raise ValueError(f'{name}: found shape {_listed(x.shape)}, must be {_listed(shape)}, that of {other}')


def values(name: str, x: Any, low: int, high: int, meaning: str = '') -> None:
  """Refuses concrete arrays with values outside of low … high; tracers pass."""
  if isinstance(x, jax.core.Tracer) or not getattr(x, 'is_fully_addressable', True) or not np.size(x):
    return
  x = np.asarray(x)
  for found in (x.min(), x.max()):
    if not low <= found <= high:
      raise ValueError(f'{name}: found {found}, must be {low} … {high}{meaning and f" ({meaning})"}')


def finite(name: str, x: np.ndarray) -> None:
  """Refuses NaN and infinity in an array on the host."""
  if not np.isfinite(x).all():
    raise ValueError(f'{name}: found a value that is not finite')


def whole(name: str, value: Any, low: int, high: int | None = None, meaning: str = '') -> None:
  """Refuses all but an integer in low … high; tracers and JAX arrays of integers pass unread."""
  if isinstance(value, jax.core.Tracer) or isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
    return
  integer(name, value)
  limit = f'{low} … {high}{meaning and f" ({meaning})"}' if high is not None else f'at least {low}'
  if operator.index(value) < low or (high is not None and operator.index(value) > high):
    raise ValueError(f'{name}: found {value}, must be {limit}')


def integer(name: str, value: Any) -> None:
  """Refuses all but an integer, of Python or NumPy."""
  if isinstance(value, (bool, np.ndarray, jax.Array)) or not hasattr(value, '__index__'):
    raise TypeError(f'{name}: found {describe(value)}, must be an integer')


def shape(name: str, value: Any, *axes: str) -> None:
  """Refuses all but a tuple of positive integers, one for each axis of one of `axes`; a size may be symbolic."""
  expected = ' or '.join(f'({", ".join(names.split())})' for names in axes)
  if not isinstance(value, Sequence) or len(value) not in {len(names.split()) for names in axes}:
    raise ValueError(f'{name}: found {describe(value)}, must be {expected}')
  if any(size is None or isinstance(size, (bool, float, str)) or (isinstance(size, (int, np.integer)) and size < 1)
         for size in value):
    raise ValueError(f'{name}: found {describe(value)}, must be positive integers {expected}')


def key(name: str, value: Any) -> None:
  """Refuses all but one typed PRNG key, as `jax.random.key` makes it."""
  dtype = getattr(value, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or value.shape:
    raise TypeError(f'{name}: found {describe(value)}, must be one typed PRNG key; use jax.random.key(seed)')


def instance(name: str, value: Any, kind: type, how: str = '') -> None:
  """Refuses all but an instance of `kind`; `how` ends the sentence with where to get one."""
  if not isinstance(value, kind):
    raise TypeError(f'{name}: found {describe(value)}, must be a {kind.__name__}{how and f"; {how}"}')


def function(name: str, value: Callable, arguments: str) -> None:
  """Refuses what cannot be called."""
  if not callable(value):
    raise TypeError(f'{name}: found {describe(value)}, must be a function of {arguments}')


def _listed(shape: Sequence[int]) -> str:
  return f'[{", ".join(map(str, shape))}]'


def describe(value: Any) -> str:
  """A value in a few words: small ones as they are, arrays by shape, others by type."""
  if hasattr(value, 'dtype') and hasattr(value, 'shape'):
    return f'{value.dtype} {_listed(value.shape)}'
  if value is None or isinstance(value, (bool, int, float, str, tuple)) and len(repr(value)) <= 60:
    return repr(value)
  return f'a {type(value).__name__}'
