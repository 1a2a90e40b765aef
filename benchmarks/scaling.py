"""Estimates the scaling efficiency of 8 to 256 chips, and the days that a recipe takes.

    python benchmarks/scaling.py [--utilisation 0.31 0.45]

Per step a chip computes for `rows * FLOPs / (peak * utilisation)` seconds, and all-reduces each gradient once in
float32, as the compiled step does (`benchmarks/collectives.py`). A ring of n chips moves 2 (n-1)/n times the bytes
through each link; several H100 machines reduce internally first, then each GPU sends its eighth to its peers.
Efficiency is compute / (compute + communication), without overlap. Latency, stragglers and data loading are ignored.
Set `--utilisation` to the result of `python -m ddgan_jax.benchmark`.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.config import recipes


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peak dense bf16 FLOP/s, and bytes per second that a chip can send.

  Attributes:
    inside: chips that the fast interconnect joins.
    beyond: bytes per second from a chip to other groups of `inside` chips.
  """

  name: str
  peak: float
  link: float
  inside: int
  beyond: float


CHIPS = (
    # NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s without sparsity, NVLink 900 GB/s counting both directions. DGX
    # H100: 8 GPUs, and a 400 Gb/s InfiniBand port for each.
    Chip('H100 SXM, NVLink and InfiniBand', 989e12, 450e9, 8, 50e9),
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, interconnect 1,600 Gb/s per chip (four links), pods of 256 chips.
    Chip('TPU v5e, all four links', 197e12, 200e9, 256, 0),
    Chip('TPU v5e, one link', 197e12, 50e9, 256, 0),
    # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 2,400 Gb/s per chip (six links), pods of 4,096 chips.
    Chip('TPU v4, all six links', 275e12, 300e9, 4096, 0),
    Chip('TPU v4, one link', 275e12, 50e9, 4096, 0),
)
# Fractions of the bf16 peak: measured for CIFAR-10's step on an H100 (benchmarks/gpu.md), and one not reached.
UTILISATIONS = (0.31, 0.45)
NUM_CHIPS = (8, 16, 32, 64, 128, 256)
# (config, FLOPs per image of a step without R1, by ddgan_jax/benchmark/flops.py); R1 steps compute more for the same
# bytes.
RUNS = (('cifar10', 79.3e9), ('celebahq_256', 1767e9))
# With R1, which is in one step of optim.lazy_reg; the networks of LSUN are those of CelebA-HQ.
BUDGETS = (('cifar10', 79.3e9, 88.2e9), ('celebahq_256', 1767e9, 2221e9), ('lsun_church_256', 1767e9, 2221e9))
# (name, index in CHIPS, chips): a v4-8 has 8 cores on 4 chips.
SYSTEMS = (('1 H100', 0, 1), ('8 H100', 0, 8), ('v4-8', 3, 4), ('v5e-64', 1, 64))


def efficiency(
    chip: Chip, num_chips: int, rows: float, operations: float, gradient_bytes: int, utilisation: float
) -> float:
  """Compute time over compute and communication time, without overlap."""
  compute = rows * operations / (chip.peak * utilisation)
  inside = min(num_chips, chip.inside)
  seconds = _ring(inside, gradient_bytes) / chip.link
  if num_chips > inside:
    seconds += _ring(num_chips // inside, gradient_bytes / inside) / chip.beyond
  return compute / (compute + seconds)


def _ring(members: int, size: float) -> float:
  return 2 * (members - 1) / members * size


def budget_table(utilisations: list[float]) -> None:
  """Prints images per second and days per recipe, at each utilisation."""
  cells = [f'images/s at {u:.0%} | days' for u in utilisations]
  print(f'| recipe | images | system | global batch | {" | ".join(cells)} |\n|{"---|" * (4 + 2 * len(utilisations))}')
  for name, plain, with_r1 in BUDGETS:
    config = config_lib.from_config_dict(recipes.load(name))
    state = train_state.abstract_state(config, None)
    gradient_bytes = 4 * (train_state.count_parameters(state.g_params) + train_state.count_parameters(state.d_params))
    operations = plain + (with_r1 - plain) / config.optim.lazy_reg
    images = config.train.num_steps * config.data.batch_size
    for system, index, chips in SYSTEMS:
      chip, batch = CHIPS[index], max(config.data.batch_size, chips * config.discriminator.stddev_group)
      cells = []
      for u in utilisations:
        share = efficiency(chip, chips, batch / chips, operations, gradient_bytes, u)
        speed = chips * chip.peak * u / operations * share
        cells.append(f'{speed:,.0f} | {images / speed / 86_400:,.2f}')
      larger = '' if batch == config.data.batch_size else ' (larger than the recipe\'s)'
      print(f'| {name} | {images / 1e6:.1f} M | {system} | {batch}{larger} | {" | ".join(cells)} |')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--utilisation', type=float, nargs='+', default=list(UTILISATIONS),
                      help='fractions of the bf16 peak; the efficiency tables use the last')
  utilisations = parser.parse_args().utilisation
  budget_table(utilisations)
  for name, operations in RUNS:
    config = config_lib.from_config_dict(recipes.load(name))
    state = train_state.abstract_state(config, None)
    gradient_bytes = [4 * train_state.count_parameters(params) for params in (state.g_params, state.d_params)]
    batch, group = config.data.batch_size, config.discriminator.stddev_group
    g_size, d_size = (f'{size / 1e6:.1f} MB' for size in gradient_bytes)
    print(f'\n{name}: gradients of G {g_size}, of D {d_size} per step\n')
    rows_a_chip = batch // NUM_CHIPS[0]
    for title, rows_of in (
        (f'global batch {batch} (the recipe)', lambda n, batch=batch: batch / n),
        (f'{rows_a_chip} rows per chip', lambda n, rows=rows_a_chip: rows)):
      print(f'| {title} | ' + ' | '.join(f'{n} chips' for n in NUM_CHIPS) + ' |\n|---|' + '---|' * len(NUM_CHIPS))
      for chip in CHIPS:
        shares = [efficiency(chip, n, rows_of(n), operations, sum(gradient_bytes), utilisations[-1]) for n in NUM_CHIPS]
        cells = [f'{share:.0%}' if rows_of(n) >= group else '–' for n, share in zip(NUM_CHIPS, shares)]
        print(f'| {chip.name} | ' + ' | '.join(cells) + ' |')
      print()


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  main()
