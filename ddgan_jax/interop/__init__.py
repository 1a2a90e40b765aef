"""Other frameworks' weights, in and out."""

from ddgan_jax.interop import pytorch

__all__ = ['pytorch']
