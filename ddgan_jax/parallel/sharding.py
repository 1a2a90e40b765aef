"""The mesh, and the state and batch shardings: the only file that names a mesh axis.

The mesh is data x fsdp, and both axes split the rows of the batch: every device holds an equal block of rows. With
`fsdp` = 1 every device holds the whole state; otherwise `fsdp` devices share one copy of its large arrays (Rajbhandari
et al., 2020, ZeRO stage 3), put a network together only while its gradient is computed, and hold the gradient in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_DATA = 'data'
_FSDP = 'fsdp'
_ROWS = (_DATA, _FSDP)
# Arrays of fewer elements stay whole on every device: biases and norms, at most 0.15% of a published network's bytes
# but half of its arrays, and gathering one costs a message however small it is.
_SMALL = 1024


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
  """The mesh over all devices of all processes (or the given ones), `fsdp` of them to a copy of the state.

  The devices of a process are neighbours, so that its rows are one block of the global batch. The axes are Auto: with
  Explicit axes, JAX's default, the gather `table[t]` and the reshape of the minibatch standard deviation are refused.

  Raises:
    ValueError: `fsdp` does not divide the number of devices (`config.check_devices` says so earlier).
  """
  if devices is None:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.asarray(devices).reshape(-1, fsdp), _ROWS, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
  """Each device holds a block of the leading (batch) axis; of the second one if batches are stacked."""
  return NamedSharding(mesh, PartitionSpec(None, _ROWS) if stacked else PartitionSpec(_ROWS))


def state_sharding(mesh: Mesh) -> Callable[[Any], NamedSharding]:
  """The sharding of an array of the state: a function of its shape alone, so that moments are sharded like parameters.

  The largest axis that `fsdp` divides is split, the first of equals; small arrays and those with no such axis are whole
  on every device.
  """
  return lambda leaf: NamedSharding(mesh, _state_spec(mesh, leaf.shape))


def tree_shardings(tree: Any) -> Any:
  """The sharding of every array, or shape, of `tree`."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's block of an array sharded by rows, on the host."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def constrain_rows(tree: Any, mesh: Mesh) -> Any:
  """Inside jit: requests that every array of `tree` be split by rows, so that noise is drawn where it is used."""
  return jax.tree.map(
      lambda leaf: jax.lax.with_sharding_constraint(leaf, batch_sharding(mesh)) if leaf.ndim else leaf, tree)


def gather(tree: Any, mesh: Mesh) -> Any:
  """Inside jit: requests that every device hold the whole of every array of `tree`."""
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), tree)


def mean_gradient(
    function: Callable[[Any, Any, Any], tuple[Any, Any]], mesh: Mesh
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Inside jit: evaluates `function` on each device's own rows and averages its result over the devices.

  The function sees whole parameters and local rows, so nothing inside it communicates. Each gradient crosses the
  interconnect once, at the end: an all-reduce, or under fsdp a reduce-scatter and an all-reduce of the part.

  Args:
    function: (params, others, rows) → (gradient, metrics). `gradient` is like `params`; `metrics` is any tree. Both are
      means over the rows, which the function may take as independent.
    mesh: the mesh.

  Returns:
    A function of the same arguments: `params`, `others` and the gradient are sharded by `state_sharding`; arrays of
    `rows` are split by rows, scalars in it are the same for all; metrics are whole.
  """
  def mapped(params, others, rows):
    def specs(tree):
      return jax.tree.map(lambda leaf: _state_spec(mesh, leaf.shape), tree)

    param_specs, other_specs = specs(params), specs(others)

    def local(params, others, rows):
      params, others = _whole(params, param_specs), _whole(others, other_specs)
      gradient, metrics = function(params, others, rows)
      return jax.tree.map(_mean_part, gradient, param_specs), jax.lax.pmean(metrics, _ROWS)

    row_specs = jax.tree.map(lambda leaf: PartitionSpec(_ROWS) if leaf.ndim else PartitionSpec(), rows)
    # Without check_vma a gradient inside is that of the device's own rows; with it, JAX would sum each use of a
    # parameter over the devices by itself.
    return jax.shard_map(
        local, mesh=mesh, in_specs=(param_specs, other_specs, row_specs), out_specs=(param_specs, PartitionSpec()),
        check_vma=False)(params, others, rows)

  return mapped


def _state_spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
  parts = mesh.shape[_FSDP]
  sizes = [size if size % parts == 0 else 0 for size in shape]
  if parts == 1 or np.prod(shape, dtype=np.int64) < _SMALL or not any(sizes):
    return PartitionSpec()
  axis = int(np.argmax(sizes))
  return PartitionSpec(*[None] * axis, _FSDP)


def _whole(tree: Any, specs: Any) -> Any:
  def gather_leaf(leaf, spec):
    return jax.lax.all_gather(leaf, _FSDP, axis=len(spec) - 1, tiled=True) if len(spec) else leaf

  return jax.tree.map(gather_leaf, tree, specs)


def _mean_part(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
  if not len(spec):
    return jax.lax.pmean(leaf, _ROWS)
  part = jax.lax.psum_scatter(leaf, _FSDP, scatter_dimension=len(spec) - 1, tiled=True) / jax.lax.axis_size(_FSDP)
  return jax.lax.pmean(part, _DATA)
