"""The mesh, and the state and batch shardings. No other file names a mesh axis.

The mesh is data x fsdp; the batch is sharded over both axes, in equal blocks of rows. With `fsdp` = 1 the state is
replicated. Otherwise its large arrays are sharded over `fsdp` devices (ZeRO stage 3, Rajbhandari et al., 2020): a
network's parameters are gathered only while its gradient is computed, and the gradient is sharded like them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_DATA = 'data'
_FSDP = 'fsdp'
_ROWS = (_DATA, _FSDP)
# Smaller arrays are replicated: biases and norms are half of a published network's arrays but at most 0.15% of its
# bytes, and each gather costs a message.
_SMALL = 1024


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
  """Makes the mesh over `devices` (by default, all devices of all processes), with `fsdp` devices per state copy.

  Devices of a process are adjacent, so that its rows are one block of the global batch. The axes are Auto: with
  Explicit axes, JAX's default, the gather `table[t]` and the reshape of the minibatch standard deviation fail.

  Raises:
    ValueError: `fsdp` does not divide the number of devices (`config.check_devices` reports it first).
  """
  if devices is None:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.asarray(devices).reshape(-1, fsdp), _ROWS, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
  """Sharding of an array over its leading (batch) axis; over its second axis if batches are `stacked`."""
  return NamedSharding(mesh, PartitionSpec(None, _ROWS) if stacked else PartitionSpec(_ROWS))


def state_sharding(mesh: Mesh) -> Callable[[Any], NamedSharding]:
  """Returns a function from a state array to its sharding, by shape alone: Adam's moments are sharded like parameters.

  The largest axis that `fsdp` divides is sharded (the first of equals); small arrays and arrays without such an axis
  are replicated.
  """
  return lambda leaf: NamedSharding(mesh, _state_spec(mesh, leaf.shape))


def tree_shardings(tree: Any) -> Any:
  """The shardings of the arrays or `jax.ShapeDtypeStruct` leaves of `tree`."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def to_host(array: Any) -> np.ndarray:
  """Copies a whole array to the host; one that is sharded over processes is gathered, so all of them must call this."""
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def local_rows(array: jax.Array) -> np.ndarray:
  """Copies this process's block of a batch-sharded array to the host."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def constrain_rows(tree: Any, mesh: Mesh) -> Any:
  """Inside jit: constrains arrays of `tree` to `batch_sharding`, so that noise is drawn where it is used."""
  return jax.tree.map(
      lambda leaf: jax.lax.with_sharding_constraint(leaf, batch_sharding(mesh)) if leaf.ndim else leaf, tree)


def gather(tree: Any, mesh: Mesh) -> Any:
  """Inside jit: constrains arrays of `tree` to be replicated."""
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), tree)


def mean_gradient(
    function: Callable[[Any, Any, Any], tuple[Any, Any]], mesh: Mesh
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Inside jit: evaluates `function` on each device's rows and averages the results over the devices.

  `function` gets full parameters and local rows, so it does not communicate. Each gradient is reduced once, at the end:
  by an all-reduce or, with fsdp, by a reduce-scatter and an all-reduce of the shard.

  Args:
    function: (params, others, rows) → (gradient, metrics), both means over independent rows. `gradient` is like
      `params`; `metrics` is any tree.
    mesh: the mesh.

  Returns:
    A function of the same arguments. `params`, `others` and the gradient have `state_sharding`; arrays of `rows` have
    `batch_sharding`; scalars in `rows` and the metrics are replicated.
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
    # Without check_vma a gradient is that of the local rows; with it, JAX would sum the gradient over the devices at
    # each use of a parameter.
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
