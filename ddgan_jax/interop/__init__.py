"""Other frameworks' weights, in and out."""

from ddgan_jax.interop import pytorch, torch_file

__all__ = ['pytorch', 'torch_file']


def __dir__() -> list[str]:
  return __all__
