"""Readers, one file per format, and `open`, which chooses among them."""

from ddgan_jax.data.readers.base import DataError, PathError, Reader, stamp

__all__ = ['DataError', 'PathError', 'Reader', 'stamp']
