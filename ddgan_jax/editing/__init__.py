"""Inpainting, stroke-based synthesis, super-resolution and interpolation with a trained generator."""

from ddgan_jax.editing import interpolation, noise_optimization, replacement

__all__ = ['interpolation', 'noise_optimization', 'replacement']


def __dir__() -> list[str]:
  return __all__
