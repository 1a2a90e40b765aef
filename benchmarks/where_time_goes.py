"""Time per kind of operation in a compiled program: `python benchmarks/where_time_goes.py --config cifar10`.

Profiles G's forward pass, or a training step (`--what plain`, `--what r1`), and sums the times of convolutions, matrix
products, reductions and other operations. Also lists the longest operations with their modules. The sum equals the
total time only if operations run sequentially, so use one core on a CPU (`taskset -c 0`). For recipes without class
labels.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import glob
import gzip
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from benchmarks.beside_pytorch import make_config
from ddgan_jax import config as config_lib
from ddgan_jax import train_state, train_step
from ddgan_jax.parallel import compilation, sharding

_KINDS = (('convolutions', (' convolution(', '__cudnn$conv', '__onednn$conv')),
          ('matrix products', (' dot(', '__cublas', '__onednn$matmul')),
          ('reductions', (' reduce(', ' reduce-window(')))
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%([\w.\-]+) = ')


def program(config: config_lib.Config, what: str) -> tuple[Any, Callable[[], Any]]:
  """The compiled program, and a function that runs it and waits."""
  state = jax.jit(lambda: train_state.create(config))()
  batch = config.data.batch_size
  x = jax.random.normal(jax.random.key(0), (batch, *config.image_shape))
  if what == 'forward':
    generator, _ = train_state.make_networks(config)
    z = jax.random.normal(jax.random.key(1), (batch, config.generator.nz))
    args = state.ema_params, x, jnp.zeros(batch, jnp.int32), z
    forward = compilation.jit(lambda params, x, t, z: generator.apply({'params': params}, x, t, z))
    compiled = forward.lower(*args).compile()
    return compiled, lambda: jax.block_until_ready(compiled(*args))
  mesh = sharding.make_mesh(jax.devices()[:1])
  compiled = train_step.make_step_fn(config, mesh, what == 'r1').lower(state, x).compile()
  states = [state]  # donated to each call

  def step() -> None:
    states[0], metrics = compiled(states[0], x)
    jax.block_until_ready(metrics)

  return compiled, step


def microseconds(run: Callable[[], Any], folder: str | None = None) -> collections.Counter:
  """Operation name → microseconds in one run; writes the trace to `folder` if one is given."""
  run()
  with contextlib.ExitStack() as exits:
    folder = folder or exits.enter_context(tempfile.TemporaryDirectory())
    with jax.profiler.trace(folder):
      run()
    path = max(glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True), key=os.path.getmtime)
    with gzip.open(path) as file:
      events = json.load(file)['traceEvents']
  # On GPUs the streams' events are the kernels; other threads summarise them.
  streams = {(event['pid'], event['tid']) for event in events
             if event.get('name') == 'thread_name' and event['args']['name'].startswith('Stream')}
  found: collections.Counter = collections.Counter()
  for event in events:
    if event.get('ph') != 'X' or streams and (event['pid'], event['tid']) not in streams:
      continue
    name = event.get('args', {}).get('hlo_op') or (event['name'] if streams else None)
    if name:
      found[name] += event['dur']
  return found


def instructions(hlo: str) -> dict[str, str]:
  """Instruction name → its HLO line, followed by the computation that it calls."""
  bodies: dict[str, list[str]] = {}
  current: list[str] = []
  for line in hlo.splitlines():
    if line.endswith('{') and (name := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(', line)):
      current = bodies.setdefault(name[1], [])
    current.append(line)
  lines = {}
  for line in hlo.splitlines():
    if name := _INSTRUCTION.match(line):
      called = re.search(r'calls=%([\w.\-]+)', line)
      lines[name[1]] = '\n'.join([line, *(bodies.get(called[1], ()) if called else ())])
  return lines


def kind_of(text: str) -> str:
  if not text:
    return 'not in the program'
  return next((kind for kind, marks in _KINDS if any(mark in text for mark in marks)), 'all else')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='cifar10', help='a recipe of configs/')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--what', default='forward', choices=('forward', 'plain', 'r1'))
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--longest', type=int, default=10, help='number of operations to list')
  parser.add_argument('--trace', help="also write the trace to this folder, for TensorBoard's profiler")
  args = parser.parse_args()
  compilation.use_persistent_cache()
  compiled, run = program(make_config(args.config, args.batch_size, args.dtype), args.what)
  lines = instructions(compiled.as_text())
  # Operations that contain others would count these twice.
  times = collections.Counter({
      name: time for name, time in microseconds(run, args.trace).items()
      if not re.search(r' (while|call|conditional)\(', lines.get(name, '').partition('\n')[0])})
  if not times:
    sys.exit("The trace names no operation of the program; this backend's profiler does not report them.")
  total = sum(times.values())
  kinds: collections.Counter = collections.Counter()
  counts: collections.Counter = collections.Counter()
  for name, time in times.items():
    kind = kind_of(lines.get(name, ''))
    kinds[kind] += time
    counts[kind] += 1
  print(f'{args.config}, batch {args.batch_size}, {args.what}, {args.dtype}, on {jax.devices()[0].device_kind}: '
        f'{1e-3 * total:,.1f} ms in all operations\n')
  print('| operations | count | ms | share |\n|---|---|---|---|')
  for kind, time in kinds.most_common():
    print(f'| {kind} | {counts[kind]} | {1e-3 * time:,.1f} | {time / total:.1%} |')
  print('\n| longest operations | kind | ms |\n|---|---|---|')
  for name, time in times.most_common(args.longest):
    text = lines.get(name, '')
    source = re.search(r'op_name="([^"]*)"', text)
    print(f'| {source[1].split("/", 1)[-1] if source else name} | {kind_of(text)} | {1e-3 * time:,.2f} |')


if __name__ == '__main__':
  main()
