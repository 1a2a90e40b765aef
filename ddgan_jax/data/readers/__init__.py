"""Readers, one per format; `open` selects one."""

from ddgan_jax.data.readers.base import DataError, PathError, Reader, stamp

__all__ = ['DataError', 'PathError', 'Reader', 'stamp']
