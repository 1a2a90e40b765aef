"""Formats the tables of a benchmark, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ddgan_jax.config import Config


def heading(config: Config, report: dict[str, Any]) -> Iterator[str]:
  """The config, the hardware, and its published peak."""
  device = report['device']
  peak = device['peak'].get(config.parallel.dtype)
  yield (f'{config.data.name} {config.data.image_size}x{config.data.image_size}, global batch '
         f'{config.data.batch_size}, {config.parallel.dtype}, on {device["devices"]} {device["kind"]} '
         f'({device["platform"]}), jax {report["jax"]}, {report["date"]}')
  if peak is None:
    yield (f'No published peak of {device["kind"]!r} in {config.parallel.dtype}, so utilisation is unknown '
           '(the peaks are in ddgan_jax/benchmark/peak_flops.py).')
  else:
    yield f'Published peak per device: {peak / 1e12:,.1f} TFLOP/s.'


def compile_table(times: dict[str, dict[str, float]]) -> Iterator[str]:
  """Table of `Programs.compile_times`."""
  yield '\n| program | trace, s | compile, s | compile from cache, s |\n|---|---|---|---|'
  for name, row in times.items():
    yield (f'| {name} | {row["cold_trace_seconds"]:.1f} | {row["cold_seconds"]:.1f} | {row["warm_seconds"]:.1f} |')


def speed_table(title: str, found: dict[str, dict[str, Any]]) -> Iterator[str]:
  """Table of `measure_training` or `measure_sampling`."""
  yield f'\n| {title} | ms, median (fastest to slowest) | images/s | GFLOP/s per device | utilisation |'
  yield '|---|---|---|---|---|'
  for name, row in found.items():
    spread = f' ({1e3 * row["fastest"]:,.1f} to {1e3 * row["slowest"]:,.1f})' if 'fastest' in row else ''
    used = 'unknown' if row['utilisation'] is None else f'{row["utilisation"]:.1%}'
    yield (f'| {name} | {1e3 * row["seconds"]:,.1f}{spread} | {row["images_per_second"]:,.2f} | '
           f'{row["operations_per_second_per_device"] / 1e9:,.1f} | {used} |')


def memory_lines(memory: dict[str, Any]) -> Iterator[str]:
  """Table of `measure_memory`."""
  yield '\n| memory per device | total, MiB | temporary, MiB |\n|---|---|---|'
  for name, row in memory.items():
    if isinstance(row, dict):
      yield f'| step {name}, XLA\'s memory analysis | {row["step_mib"]:,.0f} | {row["temporary_mib"]:,.0f} |'
  peak = memory['device_peak_mib']
  yield f'| peak in use | {"not reported by this backend" if peak is None else f"{peak:,.0f}"} | |'
