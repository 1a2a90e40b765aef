"""Measure the speed of a config on this machine: `ddgan benchmark --config cifar10 [--out b.json]`.

Measures compile time (with an empty and a filled persistent cache), training steps with R1, without it and averaged
over `optim.lazy_reg`, sampling, memory, and the fraction of time for which the training loop waits for data; for
training and sampling also FLOP/s and utilisation relative to the device's published peak. Prints tables; `--out` writes
JSON; `--profile DIR` writes a trace for TensorBoard's profiler. Uses all devices, and no data set unless `--data=real`.

Change the run with `--config.data.batch_size=64`, `--config.parallel.dtype=bfloat16` and so on; select measurements
with `--what=train,memory`. Each time is a median over `--repeats` rounds, in which all programs take turns.
"""

from __future__ import annotations

import datetime
import json
import os
import types
from collections.abc import Sequence
from typing import Any

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options
from ddgan_jax.config import ConfigError

_WHAT = ('compile', 'train', 'data', 'memory', 'sample')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_benchmark, _define_flags, __doc__, argv, required=('config',))


def _define_flags(define: options.Definer) -> None:
  define.config()
  define.string('out', None, 'Write all numbers to this .json file.')
  define.string('profile', None, 'Write a trace of a few training steps to this folder.')
  define.list('what', list(_WHAT), f'What to measure: some of {", ".join(_WHAT)}.')
  define.enum('data', 'synthetic', ['synthetic', 'real'], "Random images, or the config's data.")
  define.integer('repeats', 5, 'Rounds of measurements.', lower_bound=1)
  define.float('seconds', 0.5, 'Minimum duration of a measurement.', lower_bound=0)
  define.integer(
      'data_steps', 20, 'Number of training steps for the data measurement.', lower_bound=1)
  define.list('sample_batches', ['1', '16', '100'], 'Batch sizes for sampling.')
  define.processes()


def _benchmark(args: types.SimpleNamespace) -> None:
  config = config_lib.from_config_dict(args.config.fields)
  what, sample_batches = _check_flags(args)
  options.join_processes(args)
  # After the flags are checked, because these take seconds to import.
  import jax

  from ddgan_jax.benchmark import performance, tables
  from ddgan_jax.data import sources
  from ddgan_jax.parallel import processes

  config_lib.check_devices(config, jax.device_count())
  app.configure()
  log = print if processes.is_main() else lambda *unused, **unused_too: None
  source = sources.load_source(config.data, log) if args.data == 'real' else performance.random_images(config)
  programs = performance.Programs(config)
  report: dict[str, Any] = {
      'config': config_lib.to_dict(config), 'device': performance.device_info(), 'jax': jax.__version__,
      'date': datetime.datetime.now().isoformat(timespec='seconds'), 'cpus': os.cpu_count()}
  log('\n'.join(tables.heading(config, report)), flush=True)
  names = [*(programs.steps if {'train', 'data', 'memory', 'compile'} & set(what) else ()),
           *(f'sample_{size}' for size in sample_batches if {'sample', 'compile'} & set(what))]
  if 'compile' in what:
    for name in names:
      programs.measure_compile_time(name)
    report['compile'] = programs.compile_times
    log('\n'.join(tables.compile_table(report['compile'])), flush=True)
  programs.compile(names)
  if 'train' in what:
    report['train'] = performance.measure_training(programs, source, args.repeats, args.seconds)
    log('\n'.join(tables.speed_table('training step', report['train'])), flush=True)
  if 'data' in what:
    report['data'] = performance.measure_data_wait(programs, source, args.data_steps)
    log('\nTraining loop with {source}: {images_per_second:,.2f} images/s over {steps} steps, {data_wait:.1%} of the '
        'time waiting for data'.format(**report['data']), flush=True)
  if 'sample' in what:
    report['sample'] = performance.measure_sampling(programs, sample_batches, args.repeats, args.seconds)
    log('\n'.join(tables.speed_table('sampling, one device', report['sample'])), flush=True)
  if 'memory' in what:
    report['memory'] = performance.measure_memory(programs)
    log('\n'.join(tables.memory_lines(report['memory'])), flush=True)
  report['load'] = os.getloadavg()[0]
  if args.profile:
    performance.write_profile(programs, source, args.profile)
    log(f'\nTrace: {args.profile} (open with tensorboard --logdir {args.profile})')
  if args.out and processes.is_main():
    with open(args.out, 'w') as file:
      json.dump(report, file, indent=2)
    log(f'\nAll numbers: {args.out}')


def _check_flags(args: types.SimpleNamespace) -> tuple[list[str], tuple[int, ...]]:
  for name in args.what:
    if name not in _WHAT:
      raise ConfigError(f'--what contains {name!r}; use some of {", ".join(_WHAT)}')
  if not args.what:
    raise ConfigError(f'--what is empty; use some of {", ".join(_WHAT)}')
  sizes = args.sample_batches
  if not all(size.isdecimal() and int(size) for size in sizes):
    raise ConfigError(f'--sample_batches is {",".join(sizes)!r}; use positive integers, such as 1,16,100')
  if args.out and not args.out.endswith('.json'):
    raise ConfigError(f'--out is {args.out!r}; use a name that ends in .json')
  folder = os.path.dirname(args.out or '') or '.'
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--out: the folder {folder!r} does not exist or cannot be written to')
  return args.what, tuple(dict.fromkeys(int(size) for size in sizes))


if __name__ == '__main__':
  app.start(main)
