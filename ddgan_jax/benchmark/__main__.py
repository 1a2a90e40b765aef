"""How fast a run would be here: `python -m ddgan_jax.benchmark --config configs/cifar10.py [--out b.json]`.

Compile time (with an empty and a filled persistent cache), training with and without R1 and in the mixture of
`optim.lazy_reg`, sampling, memory, and how much of the time the training loop would wait for data. Of training and
sampling also the operations a second, and their share of the device's published peak. Prints tables; `--out` writes
JSON; `--profile DIR` leaves a trace for TensorBoard's profiler. Uses all devices, and no data set unless
`--data=real`.

`--config.data.batch_size=64`, `--config.parallel.dtype=bfloat16` and so on change the run, `--what=train,memory`
chooses. Each time is a median over `--repeats` rounds in which all programs take turns.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app
from ddgan_jax.config import ConfigError
from ddgan_jax.parallel import processes

_WHAT = ('compile', 'train', 'data', 'memory', 'sample')

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A recipe, such as configs/cifar10.py.', lock_config=True)
_OUT = flags.DEFINE_string('out', None, 'A .json file for all numbers.')
_PROFILE = flags.DEFINE_string('profile', None, 'A folder for a trace of a few training steps.')
_WHAT_FLAG = flags.DEFINE_list('what', list(_WHAT), f'Some of {", ".join(_WHAT)}.')
_DATA = flags.DEFINE_enum('data', 'synthetic', ['synthetic', 'real'], "Random images, or those of the config's data.")
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds of measurements.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 0.5, 'How long a measurement takes at least.', lower_bound=0)
_DATA_STEPS = flags.DEFINE_integer(
    'data_steps', 20, 'Training steps in which to see how long data take.', lower_bound=1)
_SAMPLE_BATCHES = flags.DEFINE_list('sample_batches', ['1', '16', '100'], 'Batch sizes of sampling.')
processes.define_flags()


def main(argv: list[str]) -> None:
  del argv
  config = config_lib.from_config_dict(_CONFIG.value)
  what, sample_batches = _check_flags()
  processes.initialize_from_flags()
  # After the flags are checked: these take seconds to import.
  import jax

  from ddgan_jax.benchmark import performance
  from ddgan_jax.data import sources
  from ddgan_jax.parallel import compilation

  config_lib.check_devices(config, jax.device_count())
  compilation.use_persistent_cache()
  say = print if processes.is_main() else lambda *unused, **unused_too: None
  source = sources.load_source(config.data, say) if _DATA.value == 'real' else performance.RandomImages(config)
  programs = performance.Programs(config)
  report: dict[str, Any] = {
      'config': config_lib.to_dict(config), 'device': performance.describe_device(), 'jax': jax.__version__,
      'date': datetime.datetime.now().isoformat(timespec='seconds'), 'cpus': os.cpu_count()}
  say('\n'.join(_heading(config, report)), flush=True)
  names = [*(programs.steps if {'train', 'data', 'memory', 'compile'} & set(what) else ()),
           *(f'sample_{size}' for size in sample_batches if {'sample', 'compile'} & set(what))]
  if 'compile' in what:
    for name in names:
      programs.measure_compiling(name)
    report['compile'] = programs.compile_times
    say('\n'.join(_compile_table(report['compile'])), flush=True)
  programs.compile(names)
  if 'train' in what:
    report['train'] = performance.measure_training(programs, source, _REPEATS.value, _SECONDS.value)
    say('\n'.join(_speed_table('training step', report['train'])), flush=True)
  if 'data' in what:
    report['data'] = performance.measure_waiting(programs, source, _DATA_STEPS.value)
    say('\nThe loop with {source}: {images_per_second:,.2f} images/s over {steps} steps, {data_wait:.1%} of the time '
        'waiting for data'.format(**report['data']), flush=True)
  if 'sample' in what:
    report['sample'] = performance.measure_sampling(programs, sample_batches, _REPEATS.value, _SECONDS.value)
    say('\n'.join(_speed_table('sampling, one device', report['sample'])), flush=True)
  if 'memory' in what:
    report['memory'] = performance.measure_memory(programs)
    say('\n'.join(_memory_lines(report['memory'])), flush=True)
  report['load'] = os.getloadavg()[0]
  if _PROFILE.value:
    performance.take_profile(programs, source, _PROFILE.value)
    say(f'\nThe trace is in {_PROFILE.value}: tensorboard --logdir {_PROFILE.value}')
  if _OUT.value and processes.is_main():
    with open(_OUT.value, 'w') as file:
      json.dump(report, file, indent=2)
    say(f'\nAll numbers: {_OUT.value}')


def _check_flags() -> tuple[list[str], tuple[int, ...]]:
  for name in _WHAT_FLAG.value:
    if name not in _WHAT:
      raise ConfigError(f'--what: found {name!r}, must be some of {", ".join(_WHAT)}')
  if not _WHAT_FLAG.value:
    raise ConfigError(f'--what: is empty, must be some of {", ".join(_WHAT)}')
  sizes = _SAMPLE_BATCHES.value
  if not all(size.isdecimal() and int(size) for size in sizes):
    raise ConfigError(f'--sample_batches: found {",".join(sizes)!r}, must be positive whole numbers, such as 1,16,100')
  if _OUT.value and not _OUT.value.endswith('.json'):
    raise ConfigError(f'--out: found {_OUT.value!r}, must end in .json')
  folder = os.path.dirname(_OUT.value or '') or '.'
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--out: the folder {folder!r} does not exist or cannot be written to')
  return _WHAT_FLAG.value, tuple(dict.fromkeys(int(size) for size in sizes))


def _heading(config: config_lib.Config, report: dict[str, Any]) -> Iterator[str]:
  device = report['device']
  peak = device['peak']
  yield (f'{config.data.name} {config.data.image_size}x{config.data.image_size}, global batch '
         f'{config.data.batch_size}, {config.parallel.dtype}, on {device["devices"]} {device["kind"]} '
         f'({device["platform"]}), jax {report["jax"]}, {report["date"]}')
  if peak is None:
    yield (f'The peak of {device["kind"]!r} is unknown, so there is no utilisation '
           '(ddgan_jax/benchmark/hardware.py has a table).')
  elif peak[config.parallel.dtype] is None:
    yield f'{device["kind"]!r} has no units for {config.parallel.dtype}, so there is no utilisation.'
  else:
    unit = f' ({peak["float32_unit"]})' if config.parallel.dtype == 'float32' else ''
    yield f'Peak of a device: {peak[config.parallel.dtype] / 1e12:,.1f} TFLOP/s{unit}, by {peak["source"]}.'


def _compile_table(times: dict[str, dict[str, float]]) -> Iterator[str]:
  yield '\n| program | traced, s | compiled, s | from the cache, s |\n|---|---|---|---|'
  for name, row in times.items():
    yield (f'| {name} | {row["cold_trace_seconds"]:.1f} | {row["cold_seconds"]:.1f} | {row["warm_seconds"]:.1f} |')


def _speed_table(title: str, found: dict[str, dict[str, Any]]) -> Iterator[str]:
  yield f'\n| {title} | ms, median (fastest to slowest) | images/s | GFLOP/s a device | utilisation |'
  yield '|---|---|---|---|---|'
  for name, row in found.items():
    spread = f' ({1e3 * row["fastest"]:,.1f} to {1e3 * row["slowest"]:,.1f})' if 'fastest' in row else ''
    used = 'unknown' if row['utilisation'] is None else f'{row["utilisation"]:.1%}'
    yield (f'| {name} | {1e3 * row["seconds"]:,.1f}{spread} | {row["images_per_second"]:,.2f} | '
           f'{row["operations_per_second_per_device"] / 1e9:,.1f} | {used} |')


def _memory_lines(memory: dict[str, Any]) -> Iterator[str]:
  yield '\n| memory of a device | in all, MiB | temporary, MiB |\n|---|---|---|'
  for name, row in memory.items():
    if isinstance(row, dict):
      yield f'| step {name}, by the compiler\'s account | {row["step_mib"]:,.0f} | {row["temporary_mib"]:,.0f} |'
  peak = memory['device_peak_mib']
  yield f'| in use at most | {"unknown: this backend does not count" if peak is None else f"{peak:,.0f}"} | |'


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
