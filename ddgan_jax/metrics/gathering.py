"""Gathers the features and moments that several processes computed."""

from __future__ import annotations

import itertools

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddgan_jax.metrics import frechet
from ddgan_jax.metrics.statistics import Statistics
from ddgan_jax.parallel import consensus

_barrier_ids = itertools.count()


def wait() -> None:
  """Waits for all processes, whose work may take differently long, before a collective operation."""
  consensus.barrier(f'features {next(_barrier_ids)}')


def gather_rows(blocks: list[np.ndarray]) -> np.ndarray:
  """Gathers [batches][rows of this process, …] from all processes to [all rows, …], in the order of the images."""
  stacked = np.stack(blocks)
  if jax.process_count() > 1:
    stacked = np.moveaxis(multihost_utils.process_allgather(stacked), 0, 1)  # [batches, processes, rows, …]
    stacked = stacked.reshape(stacked.shape[0], -1, *stacked.shape[3:])
  return stacked.reshape(-1, *stacked.shape[2:])


def merge_moments(moments: frechet.Moments) -> frechet.Moments:
  """Merges the moments of all processes; sent as bytes, because JAX would convert them to float32."""
  if jax.process_count() == 1:
    return moments
  mine = np.concatenate([[moments.count], moments.mean, moments.scatter.ravel()])
  dim = len(moments.mean)
  merged = frechet.Moments(dim)
  for row in multihost_utils.process_allgather(mine.view(np.uint8)):
    row = row.view(np.float64)
    part = frechet.Moments(dim)
    part.count, part.mean, part.scatter = int(row[0]), row[1:dim + 1], row[dim + 1:].reshape(dim, dim)
    merged.merge(part)
  return merged


def from_main(statistics: Statistics | None) -> Statistics | None:
  """Broadcasts process 0's mean and covariance; sent as bytes, because JAX would convert them to float32."""
  dim = consensus.broadcast_from_main(len(statistics.mean) if statistics else 0)
  if jax.process_count() == 1 or not dim:
    return statistics
  mine = np.zeros(dim * (dim + 1)) if statistics is None else np.concatenate(
      [statistics.mean, statistics.covariance.ravel()])
  numbers = np.asarray(multihost_utils.broadcast_one_to_all(mine.view(np.uint8))).view(np.float64)
  return Statistics('', numbers[:dim], numbers[dim:].reshape(dim, dim), None)
