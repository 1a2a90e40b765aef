"""Denoising Diffusion GANs (Xiao, Kreis, Vahdat, ICLR 2022) in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'

_FROM = {'Run': 'runs.run', 'load': 'runs.run', 'load_config': 'runs.run'}
__all__ = ['Run', '__version__', 'load', 'load_config']


def __getattr__(name: str) -> Any:
  if name not in _FROM:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_FROM[name]}'), name)


def __dir__() -> list[str]:
  return sorted(__all__)
