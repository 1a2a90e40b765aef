"""Benchmarks a machine within a time limit: `python benchmarks/on_device.py --minutes 14 --out results`.

In order of importance, until the time is up: seconds from the command to the first training step, with empty and filled
caches; the step with and without R1, its memory and utilisation; sampling; a trace by kind of kernel; PyTorch; other
batch sizes; and each optimisation on and off (`tactics.py`). Each measurement is a process of its own; $XLA_FLAGS is
used if it is set. Its output is saved in the folder as soon as it ends, with all others in `results.md`. Call it again
with the same folder to continue: finished measurements are skipped, interrupted and failed measurements are
repeated last. The compilation cache is in the folder too.

To compare with PyTorch, add `--reference FOLDER` (see `beside_pytorch.py`). A smaller selection, for a CPU:

    python benchmarks/on_device.py --minutes 30 --out results --config digits --dtype float32 --batch_sizes 16 32 \
        --sample_batches 1 16 --rounds 2 --only first_step step sample trace

Requires jax, flax, optax, orbax and ml_collections; no data set, TensorFlow, Grain or CLU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

MIN_SECONDS = 5  # with less time left, no measurement is started


@dataclasses.dataclass(frozen=True)
class Measurement:
  """One process of the benchmark.

  Attributes:
    name: name of its file in the folder.
    title: heading in results.md.
    command: its command line, without the interpreter.
  """

  name: str
  title: str
  command: tuple[str, ...]

  def last_error(self, out: pathlib.Path) -> str:
    """The last line of its standard error."""
    return (out / f'{self.name}.log').read_text().strip().rpartition('\n')[2]


def measurements(args: argparse.Namespace) -> list[Measurement]:
  """All measurements, the most important first."""
  first, *other_sizes = args.batch_sizes
  recipe = ('--config', args.config, '--dtype', args.dtype)

  def benchmark(what: str, batch_size: int, *more: str) -> tuple[str, ...]:
    return ('-m', 'ddgan_jax.benchmark', '--config', args.config, f'--config.data.batch_size={batch_size}',
            f'--config.parallel.dtype={args.dtype}', '--what', what, '--repeats', str(args.rounds), *more)

  def step(batch_size: int) -> Measurement:
    return Measurement(f'step_{batch_size}', f'Training step, batch size {batch_size}',
                       benchmark('train,memory', batch_size))

  def trace(what: str) -> Measurement:
    return Measurement(f'trace_{what}', f'Kernels of one step ({what}), batch size {first}', (
        'benchmarks/where_time_goes.py', *recipe, '--batch_size', str(first), '--what', what, '--longest', '30',
        '--trace', str(args.out / 'traces' / what)))

  def pytorch(task: str, batch_size: int, variant: str) -> Measurement:
    name = f'pytorch_{task}_{batch_size}_{variant}'.replace(' ', '_')
    return Measurement(name, f'Beside PyTorch: {task}, batch size {batch_size}, {variant}', (
        'benchmarks/beside_pytorch.py', '--reference', args.reference, '--config', args.config, '--device',
        'cuda' if args.gpu else 'cpu', '--threads', str(os.cpu_count()), '--tasks', task, '--batch_size',
        str(batch_size), '--variants', variant, '--dtypes', args.dtype, '--rounds', str(args.rounds)))

  found = [
      Measurement('first_step', f'From the command to the first step, batch size {first}', (
          'benchmarks/on_device.py', '--first_step', args.config, args.dtype, str(first), str(args.out / 'cache'))),
      step(first),
      Measurement('sample', 'Sampling', benchmark(
          'sample', first, '--sample_batches', ','.join(map(str, args.sample_batches)))),
      trace('plain')]
  if args.reference:
    eager, compiled = ('tf32', 'bf16 channels_last compile') if args.gpu else ('channels_last', 'compile')
    sizes = [size for size in args.batch_sizes if size <= first]  # PyTorch needs more memory
    found += [pytorch('step', size, variant) for variant in (eager, compiled) for size in sorted(sizes)]
    found += [pytorch('sample', min(100, first), variant) for variant in (eager, compiled)]
  found += map(step, other_sizes)
  found.append(trace('r1'))
  tactics = ('sampler', 'attention', 'norm', 'parts', 'calls', 'fir', 'residual', 'layout', 'd_half', 'update',
             'channels', 'shortcut', 'tiny_maps', 'wasted_gradient')
  found += [Measurement(f'tactics_{name}', f'Optimisation: {name}', (
      'benchmarks/tactics.py', '--only', name, '--batch_size', str(first), '--dtype', args.dtype, '--rounds',
      str(args.rounds))) for name in tactics]
  return [each for each in found if any(each.name.startswith(prefix) for prefix in args.only)]


def first_step(config_name: str, dtype: str, batch_size: str, cache: str) -> None:
  """Measures the first step in two new processes, with empty and filled caches; deletes what is in `cache`."""
  shutil.rmtree(cache, ignore_errors=True)
  print('| caches | first step after, s | program | traced in, s | compiled in, s |\n|---|---|---|---|---|', flush=True)
  command = (sys.executable, __file__, '--first_step', config_name, dtype, batch_size)
  for caches in ('empty', 'filled'):
    subprocess.run([*command, caches, repr(time.time())], check=True)


def take_first_step(config_name: str, dtype: str, batch_size: str, caches: str, started: str) -> None:
  """Compiles the training programs in parallel, as the training does, and runs the first step on random images."""
  import jax

  from benchmarks.beside_pytorch import make_config
  from ddgan_jax.benchmark import performance
  from ddgan_jax.parallel import compilation

  compilation.use_persistent_cache()
  config = make_config(config_name, int(batch_size), dtype)
  programs = performance.Programs(config)
  names = programs.names()
  programs.start(names)
  state, batch = programs.create_state(), performance.first_batch(programs, performance.random_images(config))
  _, metrics = programs[names[0]](state, *batch)
  metrics = jax.device_get(metrics)
  seconds = f'{time.time() - float(started):.1f}'
  if not all(map(math.isfinite, metrics.values())):
    sys.exit(f'Error: the first step returned {metrics}')
  for name in names:
    program = programs[name]
    print(f'| {caches} | {seconds} | {name} | {program.trace_seconds:.1f} | {program.compile_seconds:.1f} |')
    seconds = ''


def run(measurement: Measurement, out: pathlib.Path, seconds: float) -> bool:
  """Runs a measurement, at most this long; returns whether it succeeded.

  Its output is NAME.partial until it ends, then NAME.txt, NAME.failed or NAME.stopped; its errors are NAME.log.
  """
  name = str(out / measurement.name)
  started = time.time()
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(out / 'cache'), 'PYTHONUNBUFFERED': '1'}
  with open(f'{name}.log', 'w') as errors, open(f'{name}.partial', 'w') as output:
    process = subprocess.Popen([sys.executable, *measurement.command], cwd=ROOT, env=environment, stdout=output,
                               stderr=errors, start_new_session=True)
    try:
      status = process.wait(seconds)
    except subprocess.TimeoutExpired:
      status = None
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
  with open(f'{name}.partial', 'a') as output:
    end = 'Stopped' if status is None else f'Exit status {status}'
    output.write(f'\n{end} after {time.time() - started:.1f} s, {datetime.datetime.now():%Y-%m-%d %H:%M}.\n')
  for state in ('failed', 'stopped'):  # of an earlier call
    pathlib.Path(f'{name}.{state}').unlink(missing_ok=True)
  os.replace(f'{name}.partial', f'{name}.{"stopped" if status is None else "failed" if status else "txt"}')
  return status == 0


def pending(chosen: list[Measurement], out: pathlib.Path) -> list[Measurement]:
  """The measurements that have not finished; those that were never started first."""
  left = [each for each in chosen if not (out / f'{each.name}.txt').exists()]
  return sorted(left, key=lambda each: (out / f'{each.name}.log').exists())


def report(chosen: list[Measurement], out: pathlib.Path, heading: str) -> str:
  """The outputs of all measurements as one Markdown page."""
  sections = [f'# Measurements\n\n{heading}']
  for each in chosen:
    for ending, state in (('txt', ''), ('failed', ' (failed)'), ('stopped', ' (stopped)')):
      path = out / f'{each.name}.{ending}'
      if path.exists():
        command = ' '.join(each.command).replace(f'{ROOT}/', '')
        text = path.read_text() + (f'\n{each.last_error(out)}' if ending == 'failed' else '')
        sections.append(f'## {each.title}{state}\n\n`python {command}`\n\n{text.strip()}')
  return '\n\n'.join(sections) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--minutes', type=float, help='total time of this call')
  parser.add_argument('--out', type=pathlib.Path, help='folder of the results')
  parser.add_argument('--config', default='cifar10', help='a recipe of configs/ without class labels')
  parser.add_argument('--dtype', default='bfloat16', choices=('float32', 'bfloat16'))
  parser.add_argument('--batch_sizes', type=int, nargs='+', default=[256, 64, 512], help='the most important first')
  parser.add_argument('--sample_batches', type=int, nargs='+', default=[1, 16, 100, 1000])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--reference', default='', help='checkout of the original, to compare with PyTorch')
  parser.add_argument('--only', nargs='+', default=[''], help='beginnings of the names of measurements')
  parser.add_argument('--first_step', nargs='+', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.first_step:
    (first_step if len(args.first_step) == 4 else take_first_step)(*args.first_step)
    return
  if args.minutes is None or args.out is None:
    parser.error('--minutes and --out are required')
  if args.reference and not os.path.isdir(args.reference):
    parser.error(f'--reference: no folder {args.reference!r}')
  end = time.monotonic() + 60 * args.minutes
  args.out, args.reference = args.out.absolute(), args.reference and os.path.abspath(args.reference)
  args.gpu = shutil.which('nvidia-smi') is not None
  args.out.mkdir(parents=True, exist_ok=True)
  chosen = measurements(args)
  if not chosen:
    parser.error(f'--only {" ".join(args.only)}: no measurement has a name that begins with this')
  signal.signal(signal.SIGTERM, lambda *unused: sys.exit(143))  # `run` then stops its process
  heading = (f'{args.config}, {args.dtype}, {args.rounds} rounds; XLA_FLAGS={os.environ.get("XLA_FLAGS", "")!r}; '
             f'{os.cpu_count()} cores; last written {{:%Y-%m-%d %H:%M}}')
  for each in pending(chosen, args.out):
    left = end - time.monotonic()
    if left < MIN_SECONDS:
      break
    print(f'{each.name}: ', end='', flush=True)
    begun = time.monotonic()
    succeeded = run(each, args.out, left)
    print(f'{"done" if succeeded else "not finished"} after {time.monotonic() - begun:.0f} s', flush=True)
    (args.out / 'results.md').write_text(report(chosen, args.out, heading.format(datetime.datetime.now())))
  left = [each.name for each in pending(chosen, args.out)]
  print(f'{args.out}/results.md: {len(chosen) - len(left)} of {len(chosen)} measurements'
        + (f'; missing: {", ".join(left)}' if left else ''))


if __name__ == '__main__':
  main()
