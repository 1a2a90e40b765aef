"""Compiles the training step for a TPU slice without a TPU, and prints its memory and collectives.

    pip install '.[tpu]'
    python launch/compile_tpu.py --config configs/cifar10.py --topology v5e:2x2 --config.parallel.dtype=bfloat16

The TPU compiler of the libtpu wheel compiles for a topology given by name (`v5e:2x2`, `v5e:4x4`, `v4:2x2x1`,
`v5p:2x2x1`, …). Prints compile time, bytes per chip, collectives and XLA's FLOP count. Takes minutes on one core.
`--variant plain` is the step without R1, `r1` the step with it.
"""

from __future__ import annotations

import os
import sys
import time

# Otherwise libtpu queries the metadata server of a TPU machine.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_WORKER_ID', '0')
os.environ['JAX_PLATFORMS'] = 'cpu'  # only compiles for the TPU
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from benchmarks import collectives
from ddgan_jax import config as config_lib
from ddgan_jax.parallel import compilation, sharding

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file of the run.', lock_config=True)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2', 'Name of the slice, as in `get_topology_desc`.')
_VARIANT = flags.DEFINE_enum('variant', 'plain', ['plain', 'r1'], 'Step without (plain) or with (r1) the R1 penalty.')


def main(argv: list[str]) -> None:
  del argv
  config = config_lib.from_config_dict(_CONFIG.value)
  devices = topologies.get_topology_desc(_TOPOLOGY.value, platform='tpu').devices
  config_lib.check_devices(config, len(devices))
  mesh = sharding.make_mesh(devices, config.parallel.fsdp)
  started = time.perf_counter()
  compiled = collectives.compile_step(config, mesh, with_r1=_VARIANT.value == 'r1')
  seconds = time.perf_counter() - started
  print(f'{config.data.name}, global batch {config.data.batch_size}, {config.parallel}, step {_VARIANT.value}, on '
        f'{len(devices)} x {devices[0].device_kind} ({_TOPOLOGY.value}): compiled in {seconds:.0f} s')
  memory, total = compiled.memory_analysis(), compilation.memory_bytes(compiled)[0]
  print(f'bytes per chip: {total:,} at the peak: {memory.argument_size_in_bytes:,} of '
        f'state and images, {memory.temp_size_in_bytes:,} temporary, {memory.generated_code_size_in_bytes:,} of code')
  print(f'FLOPs per chip by XLA\'s count: {compiled.cost_analysis()["flops"]:,.0f}')
  print(collectives.table(collectives.collectives(compiled.as_text())))


if __name__ == '__main__':
  app.run(main)
