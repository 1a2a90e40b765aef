"""Exports a run's sampler as one StableHLO program with its parameters, which JAX runs without this package."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp

import ddgan_jax
from ddgan_jax import sampling, train_state

PLATFORMS = ('cpu', 'cuda', 'tpu')
# If the noise of this many images fits in memory, the program draws the noise of the whole batch at once.
_LARGE_BATCH = 10_000


def export_sampler(run: ddgan_jax.Run, platforms: Sequence[str] = PLATFORMS) -> jax.export.Exported:
  """Exports the computation of `image_output.generate`.

  If the noise of all steps of a large batch would not fit in memory, the program samples the batch in parts (see
  `sampling.max_batch_size`).

  Args:
    run: a run of `ddgan_jax.load`, with one label or none.
    platforms: target platforms; each gets its own implementation of the FIR filters.

  Returns:
    `.call(seed, indices)` maps a uint32 scalar and int32 [B], for any B, to [B, H, W, C] uint8 (float32 for points and
    values); image i is a function of (seed, i). The sampler of a run with data.condition has a third argument, the
    conditions [B, h, w, c] float32; zeros mean none if the run has a condition_dropout. `.serialize()` returns the
    bytes of a file.
  """
  config = run.config
  most = sampling.max_batch_size(run.schedule.num_timesteps, config.image_shape, config.generator.nz)

  def sample(seed, indices, condition=None):
    generator_fn = run.generator_fn if condition is None else train_state.make_sampler(
        config, run.params, run.schedule.num_timesteps, run.label, condition)[0]
    images = sampling.sample_each(seed, indices, generator_fn, run.schedule, config.image_shape, config.generator.nz)
    return train_state.in_units_of_data(images, config)

  def sample_in_parts(seed, indices, *condition):
    count = indices.shape[0]
    num_parts = -(-count // most)
    size = jax.core.min_dim(count, -(-count // num_parts))

    # Slices are clamped, so a last part that would exceed the batch begins earlier.
    def sample_part(part, images):
      rows = [jax.lax.dynamic_slice_in_dim(array, part * size, size) for array in (indices, *condition)]
      sampled = sample(seed, *rows)
      return jax.lax.dynamic_update_slice_in_dim(images, sampled, part * size, axis=0)

    dtype = jnp.uint8 if config.data.is_8_bit else jnp.float32
    return jax.lax.fori_loop(0, num_parts, sample_part, jnp.zeros((count, *config.image_shape), dtype))

  (batch,) = jax.export.symbolic_shape('batch')
  arguments = [jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((batch,), jnp.int32)]
  if config.data.condition_shape:
    arguments.append(jax.ShapeDtypeStruct((batch, *config.data.condition_shape), jnp.float32))
  return jax.export.export(
      jax.jit(sample if most >= _LARGE_BATCH else sample_in_parts), platforms=tuple(platforms))(*arguments)
