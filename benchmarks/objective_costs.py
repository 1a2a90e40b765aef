"""Measures what each objective costs: `python benchmarks/objective_costs.py --config digits`.

The training steps of all methods of `ddgan compare` with T = 4 take turns, with the networks and batch size of one
recipe; so do the samplers in pixel and in Haar space. Ratios are those of medians to DDGAN; the time of a training step
is the average over plain steps and steps with R1.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.benchmark import performance, timing
from ddgan_jax.compare import comparison
from ddgan_jax.config import recipes
from ddgan_jax.parallel import compilation

METHODS = ('ddgan_4', 'relativistic', 'rduot', 'ufogen', 'siddm', 'haar')


def lines_of_code(name: str) -> int:
  """Lines of an objective's file."""
  files = {'ddgan_4': 'ddgan', 'haar': 'reconstruction'}
  path = ROOT / 'ddgan_jax' / 'objectives' / f'{files.get(name, name)}.py'
  return len(path.read_text().splitlines())


def step_seconds(programs: dict[str, performance.Programs], rounds: int) -> dict[str, tuple[float, list[str]]]:
  """Mean seconds of a training step of each method, and the median of each of its programs in milliseconds."""
  runs = {}
  for name, each in programs.items():
    training = performance._Training(each, performance.random_images(each.config))
    runs |= {(name, step): functools.partial(training.run, step) for step in each.steps}
  times = timing.time_interleaved(runs, rounds)
  found = {}
  for name, each in programs.items():
    medians = {step: times[name, step].median for step in each.steps}
    share = each.r1_share if len(medians) == 2 else 0.0
    seconds = share * medians['r1'] + (1 - share) * medians['plain'] if share else next(iter(medians.values()))
    found[name] = seconds, [f'{step} {1e3 * median:.1f}' for step, median in medians.items()]
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='digits', help='a recipe of configs/ without class labels')
  parser.add_argument('--batch_size', type=int, default=0, help='of the training step; default that of the recipe')
  parser.add_argument('--what', nargs='+', default=['train', 'sample'], choices=('train', 'sample'))
  parser.add_argument('--num_samples', type=int, default=16, help='images in one call of the sampler')
  parser.add_argument('--rounds', type=int, default=9)
  args = parser.parse_args()
  compilation.use_persistent_cache()
  fields = recipes.load(args.config)
  fields.data.batch_size = args.batch_size or fields.data.batch_size
  base = config_lib.from_config_dict(fields)
  programs = {
      name: performance.Programs(comparison.method_config(base, comparison.METHODS[name], base.train.num_steps))
      for name in METHODS}
  print(f'{args.config}, batch size {base.data.batch_size}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, '
        f'{args.rounds} rounds\n')
  if 'train' in args.what:
    for each in programs.values():
      each.compile(each.steps)
    found = step_seconds(programs, args.rounds)
    print('| method | lines of its file | training step / DDGAN | median ms of each kind of step |\n|---|---|---|---|')
    for name, (seconds, parts) in found.items():
      print(f'| {comparison.METHODS[name].title} | {lines_of_code(name)} | {seconds / found["ddgan_4"][0]:.2f} | '
            f'{", ".join(parts)} |')
    print()
  if 'sample' in args.what:
    name = f'sample_{args.num_samples}'
    runs = {}
    for method in ('ddgan_4', 'haar'):
      params = jax.jit(functools.partial(train_state.create, programs[method].config))().ema_params
      runs[method] = functools.partial(programs[method][name], params, 0)
    times = timing.time_interleaved(runs, args.rounds)
    print(f'| sampling {args.num_samples} images, 4 evaluations | ms | / pixels |\n|---|---|---|')
    for method, space in (('ddgan_4', 'pixels'), ('haar', 'Haar coefficients')):
      seconds = times[method].median
      print(f'| {space} | {1e3 * seconds:.1f} | {seconds / times["ddgan_4"].median:.2f} |')


if __name__ == '__main__':
  main()
