"""Denoising Diffusion GANs (Xiao, Kreis, Vahdat, ICLR 2022) in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ddgan_jax.runs.run import Run, load, load_config

__version__ = '0.1.0'

_FROM = {'Run': 'runs.run', 'load': 'runs.run', 'load_config': 'runs.run'}
_MODULES = ('config', 'diffusion', 'editing', 'interop', 'metrics', 'models', 'sampling')
__all__ = ['Run', '__version__', 'load', 'load_config']


def __getattr__(name: str) -> Any:
  """Imports lazily, so that parsing the flags of a command does not import JAX."""
  if name in _FROM:
    return getattr(importlib.import_module(f'{__name__}.{_FROM[name]}'), name)
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*__all__, *_MODULES])
