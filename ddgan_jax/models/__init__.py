"""Flax modules for G and D. The only package that imports flax.linen."""

from ddgan_jax.models.classifier import Classifier
from ddgan_jax.models.discriminator import Discriminator
from ddgan_jax.models.generator import Generator, generator_fn

__all__ = ['Classifier', 'Discriminator', 'Generator', 'generator_fn']
