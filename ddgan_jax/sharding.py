"""The mesh and how arrays lie on it: the only file that names a mesh axis.

Plain data parallelism: every device holds the whole state and an equal block of rows of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_DATA = 'data'


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-dimensional mesh over all devices of all processes (or the given ones).

  The axis is Auto: with Explicit axes, JAX's default, the gather `table[t]` and the reshape of the minibatch
  standard deviation are refused.
  """
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (_DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
  """Each device holds a block of the leading (batch) axis."""
  return NamedSharding(mesh, PartitionSpec(_DATA))


def constrain_rows(tree: Any, mesh: Mesh) -> Any:
  """Inside jit: asks that every array of `tree` be split by rows, so that noise is drawn where it is used."""
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, by_rows(mesh)), tree)
