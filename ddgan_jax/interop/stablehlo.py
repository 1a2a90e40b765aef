"""A run's sampler as one StableHLO program with its parameters in it, which JAX runs without this package."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp

import ddgan_jax
from ddgan_jax import sampling

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_sampler(run: ddgan_jax.Run, platforms: Sequence[str] = PLATFORMS) -> jax.export.Exported:
  """Exports what `outputs.generate` computes.

  Args:
    run: as `ddgan_jax.load` gives it.
    platforms: for which the program is; each gets its own form of the FIR filters.

  Returns:
    `.call(seed, indices)`: uint32 scalar, int32 [B] for any B → [B, H, W, C] uint8, image i a function of (seed, i);
    of points float32. `.serialize()` gives the bytes of a file.
  """
  config = run.config

  def sample(seed, indices):
    images = sampling.sample_each(
        seed, indices, run.generator_fn, run.schedule, config.image_shape, config.generator.nz)
    return images if config.data.is_points else sampling.to_uint8(images)

  (batch,) = jax.export.symbolic_shape('batch')
  return jax.export.export(jax.jit(sample), platforms=tuple(platforms))(
      jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((batch,), jnp.int32))
