"""Device memory of a training step by XLA's memory analysis, from shapes only.

    python benchmarks/memory.py [--only cifar10] [--largest]

Compiles the step with R1, which needs most memory, of the published networks for the CPU (one or two minutes each on
one core) without running it: float32, bfloat16, rematerialisation, and 8 devices with `parallel.fsdp=8`. Prints the
rows of a table.

`--largest` prints how many rows fit on one device of 16, 40 and 80 GiB. Memory is nearly linear in the batch size, so
this extrapolates from the two sizes of the table, and compiles the prediction for 16 GiB to check it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from typing import Any

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from benchmarks.collectives import compile_step
from ddgan_jax import config as config_lib
from ddgan_jax.config import recipes
from ddgan_jax.parallel import compilation, sharding

RUNS = (('cifar10', (64, 256)), ('celebahq_256', (4, 32)))
VARIANTS = (
    ('f32', {}), ('bf16', {'dtype': 'bfloat16'}), ('f32, remat', {'remat': True}),
    ('bf16, remat', {'dtype': 'bfloat16', 'remat': True}), ('f32, fsdp 8', {'fsdp': 8}))


CAPACITIES = (16, 40, 80)


def largest(only: str) -> None:
  """Prints the largest batch sizes of one device, for each single-device variant."""
  capacities = ' | '.join(f'{gib} GiB' for gib in CAPACITIES)
  print(f'| config | options | MiB | {capacities} | MiB of the first, predicted | compiled |\n'
        f'|{"---|" * (5 + len(CAPACITIES))}', flush=True)
  for name, (few, many) in RUNS:
    if only not in ('', name):
      continue
    for variant, parallel in VARIANTS:
      if 'fsdp' in parallel:
        continue
      of_few, of_many = (_step_mib(name, size, parallel) for size in (few, many))
      row = (of_many - of_few) / (many - few)
      fixed = of_many - many * row
      group = recipes.load(name).discriminator.stddev_group
      batches = [int((2**10 * gib - fixed) / row) // group * group for gib in CAPACITIES]
      print(f'| {name} | {variant} | {fixed:,.0f} + {row:,.1f} per row | {" | ".join(map(str, batches))} | '
            f'{fixed + batches[0] * row:,.0f} | {_step_mib(name, batches[0], parallel):,.0f} |', flush=True)


def _step_mib(name: str, batch_size: int, parallel: dict[str, Any]) -> float:
  fields = recipes.load(name)
  fields.data.batch_size = batch_size
  fields.parallel.update(parallel)
  mesh = sharding.make_mesh(jax.devices()[:1])
  compiled = compile_step(config_lib.from_config_dict(fields), mesh, with_r1=True)
  jax.clear_caches()
  return compilation.memory_bytes(compiled)[0] / 2**20


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', choices=('', *(name for name, *_ in RUNS)))
  parser.add_argument('--largest', action='store_true', help='print the rows that fit into 16, 40 and 80 GiB')
  args = parser.parse_args()
  only = args.only
  if args.largest:
    largest(only)
    return
  print('| config | global batch | options | devices | state and batch, MiB | temporary, MiB | total, MiB per device | '
        'compiled in |\n|---|---|---|---|---|---|---|---|', flush=True)
  for name, batch_sizes in RUNS:
    if only not in ('', name):
      continue
    for batch_size in batch_sizes:
      for variant, parallel in VARIANTS:
        fields = recipes.load(name)
        fields.data.batch_size = batch_size
        config = config_lib.from_config_dict(fields)
        config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **parallel))
        devices = config.parallel.fsdp
        try:
          config_lib.check_devices(config, devices)
        except config_lib.ConfigError:
          continue  # fewer rows than devices times the group of the minibatch standard deviation
        begun = time.perf_counter()
        total, temporary = compilation.memory_bytes(compile_step(
            config, sharding.make_mesh(jax.devices()[:devices], config.parallel.fsdp), with_r1=True))
        print(f'| {name} | {batch_size} | {variant} | {devices} | {(total - temporary) / 2**20:,.0f} | '
              f'{temporary / 2**20:,.0f} | {total / 2**20:,.0f} | {time.perf_counter() - begun:.0f} s |', flush=True)
        jax.clear_caches()


if __name__ == '__main__':
  main()
