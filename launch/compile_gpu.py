"""Compiles a program for H100s without a GPU, and prints its memory, kernels and collectives.

    pip install '.[gpu-compiler]'
    python launch/compile_gpu.py --config configs/cifar10.py --config.parallel.dtype=bfloat16
    python launch/compile_gpu.py --config configs/cifar10.py --config.parallel.dtype=bfloat16 --gpus 8

Install it in an environment of its own. The CUDA plugin of JAX needs neither a GPU nor CUDA's libraries to compile. It
cannot time kernels then, so it takes the default algorithms of cuDNN and cuBLAS.

`--what` selects the step without R1 (plain) or with it (r1), or the sampler; `--longest N` lists the N kernels that
move the most bytes; `--hlo FILE` writes the compiled program. CIFAR-10's step takes 2 to 7 minutes on one core.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'  # only compiles for the GPU
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

import jax
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from benchmarks import collectives, kernels
from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.benchmark import performance
from ddgan_jax.parallel import compilation, sharding

BYTES_PER_SECOND = 3.35e12  # of an H100 SXM
# An H100 SXM as XLA describes it, from the public data sheet.
_H100 = '''
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" runtime_version { major: 13 } dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
'''

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file of the run.', lock_config=True)
_WHAT = flags.DEFINE_enum('what', 'plain', ['plain', 'r1', 'sampler'], 'The program.')
_GPUS = flags.DEFINE_integer('gpus', 1, 'Number of GPUs of one machine.', lower_bound=1)
_LONGEST = flags.DEFINE_integer('longest', 0, 'Number of kernels to list.', lower_bound=0)
_HLO = flags.DEFINE_string('hlo', None, 'File for the compiled program.')


def devices(count: int) -> list[jax.Device]:
  """`count` H100s to compile for. Raises RuntimeError without the plugin."""
  return list(topologies.get_topology_desc(
      'h100', platform='cuda', target_config=_H100, topology=f'1x1x{count}').devices)


def compile_program(config: config_lib.Config, what: str, gpus: list[jax.Device]) -> jax.stages.Compiled:
  """The program `what` of a run, compiled for `gpus`."""
  if what in ('plain', 'r1'):
    return collectives.compile_step(config, sharding.make_mesh(gpus, config.parallel.fsdp), with_r1=what == 'r1')
  here = jax.sharding.SingleDeviceSharding(gpus[0])
  sampler = functools.partial(performance.sample, config, config.data.batch_size)
  return compilation.jit(sampler, 'gpu', out_shardings=here).lower(
      train_state.abstract_state(config, here).ema_params, 0).compile()


def main(argv: list[str]) -> None:
  del argv
  config = config_lib.from_config_dict(_CONFIG.value)
  config_lib.check_devices(config, _GPUS.value)
  gpus = devices(_GPUS.value)
  compilation.XLA_OPTIONS['gpu']['xla_gpu_autotune_level'] = '0'  # timing kernels needs a GPU
  started, processor = time.perf_counter(), time.process_time()
  compiled = compile_program(config, _WHAT.value, gpus)
  seconds, processor = time.perf_counter() - started, time.process_time() - processor
  hlo = compiled.as_text()
  if _HLO.value:
    pathlib.Path(_HLO.value).write_text(hlo)
  print(f'{config.data.name}, global batch {config.data.batch_size}, {config.parallel}, {_WHAT.value}, on '
        f'{len(gpus)} x {gpus[0].device_kind}: traced and compiled in {seconds:.0f} s, {processor:.0f} CPU seconds')
  memory, total = compiled.memory_analysis(), compilation.memory_bytes(compiled)[0]
  print(f'MiB per GPU: {total / 2**20:,.0f} at the peak, {memory.temp_size_in_bytes / 2**20:,.0f} of them temporary\n')
  found = kernels.kernels(hlo)
  print(kernels.table(found, BYTES_PER_SECOND))
  if _LONGEST.value:
    print('\n' + kernels.longest(found, _LONGEST.value))
  if len(gpus) > 1:
    print('\n' + collectives.table(collectives.collectives(hlo)))


if __name__ == '__main__':
  app.run(main)
