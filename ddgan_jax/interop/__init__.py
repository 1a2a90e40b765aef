"""Converts weights from and to other frameworks."""

from ddgan_jax.interop import pytorch, torch_file

__all__ = ['pytorch', 'torch_file']


def __dir__() -> list[str]:
  return __all__
