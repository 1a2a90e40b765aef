"""Flax modules for G and D. The only package that imports flax.linen."""

from ddgan_jax.models.classifier import Classifier
from ddgan_jax.models.discriminator import Discriminator
from ddgan_jax.models.functional import apply
from ddgan_jax.models.generator import Generator, generator_fn, output_fn
from ddgan_jax.models.mlp import MlpDiscriminator, MlpGenerator

__all__ = [
    'Classifier', 'Discriminator', 'Generator', 'MlpDiscriminator', 'MlpGenerator', 'apply', 'generator_fn',
    'output_fn']


def __dir__() -> list[str]:
  return __all__
