"""Compares speed with a PyTorch implementation: `python benchmarks/beside_pytorch.py --reference FOLDER`.

FOLDER is a checkout of the original, https://github.com/NVlabs/denoising-diffusion-gan, or of code with the same
modules; it is imported at run time. Times G's forward pass, sampling and the training step at the sizes of `--config`.
Each implementation runs in a separate process with `--threads` cores (or the GPU), taking turns, so that other load
affects both. Ratios are those of medians; CPU time, summed over threads, is more reliable on a busy machine. PyTorch
runs eagerly, with the channels_last memory format, with torch.compile, and on a GPU also in TF32 and with bf16
autocast; its training step as published and without unused work (`Reference.training_step`). For FID features see
`benchmarks/inception_speed.py`. Requires PyTorch (`pip install -e '.[torch]'`).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

from benchmarks import inception_speed

TASKS = ('forward', 'sample', 'step', 'step r1')
CPU_VARIANTS = ('eager', 'channels_last', 'compile')
GPU_VARIANTS = ('eager', 'tf32', 'bf16 channels_last compile')
OURS = 'ddgan_jax'


def make_config(name: str, batch_size: int, dtype: str):
  """The recipe `configs/NAME.py` with this batch size and dtype."""
  from ddgan_jax import config as config_lib
  from ddgan_jax.config import recipes

  fields = recipes.load(name)
  fields.data.batch_size = batch_size
  fields.parallel.dtype = dtype
  return config_lib.from_config_dict(fields)


def weights(config) -> dict[str, np.ndarray]:
  """Weights of G for both implementations, by the original's tensor names."""
  from ddgan_jax import train_state
  from ddgan_jax.interop import pytorch

  shapes = {
      name: tensor.shape for name, tensor in pytorch.generator_state_dict(
          _zeros(train_state.abstract_state(config, None).g_params), config.generator).items()}
  return inception_speed.random_weights(shapes)


def _zeros(tree):
  import jax

  return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)


def inputs(config, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """x_tp1 [B, H, W, C], t [B], z [B, nz]."""
  rng = np.random.default_rng(0)
  return (rng.standard_normal((batch_size, *config.image_shape), np.float32),
          np.arange(batch_size) % config.diffusion.num_timesteps,
          rng.standard_normal((batch_size, config.generator.nz), np.float32))


def our_run(task: str, variant: str, config):
  """The function to time for ddgan_jax; it returns numpy arrays or waits for the devices."""
  import jax
  import jax.numpy as jnp

  from ddgan_jax import models, sampling, train_state, train_step
  from ddgan_jax.interop import pytorch
  from ddgan_jax.parallel import compilation, sharding

  compilation.use_persistent_cache()
  generator, _ = train_state.make_networks(config)
  if task.startswith('step'):
    mesh = sharding.make_mesh(jax.devices()[:1])
    step_fn = train_step.make_step_fn(config, mesh, task == 'step r1')
    state = jax.jit(lambda: train_state.create(config))()
    x_0 = jnp.asarray(inputs(config, config.data.batch_size)[0])

    def run():
      nonlocal state
      state, metrics = step_fn(state, x_0)
      return np.asarray(metrics['loss_g'])

    return run
  params = jax.device_put(pytorch.generator_params(weights(config), config.generator))
  schedule = train_state.make_schedule(config)
  if task == 'forward':
    forward = compilation.jit(lambda params, *args: generator.apply({'params': params}, *args))
    return lambda: np.asarray(forward(params, *inputs(config, config.data.batch_size)))
  shape = (config.data.batch_size, *config.image_shape)
  sample = compilation.jit(lambda params: sampling.sample(
      jax.random.key(0), models.generator_fn(generator, params, schedule), schedule, shape, config.generator.nz))
  return lambda: np.asarray(sample(params))


def torch_run(task: str, variant: str, config, reference: str, device: str, threads: int, use_kernels: bool):
  """The function to time for PyTorch; see `our_run`."""
  import torch

  from benchmarks import torch_reference

  torch.set_num_threads(threads)
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = 'tf32' in variant or 'bf16' in variant
  network = torch_reference.Reference(
      reference, config, device, channels_last='channels_last' in variant, compile_='compile' in variant,
      autocast='bf16' in variant, use_kernels=use_kernels)
  finish = torch.cuda.synchronize if device == 'cuda' else lambda: None
  batch_size = config.data.batch_size
  if task.startswith('step'):
    step = network.training_step(batch_size, published='published' in variant)

    def run():
      step(task == 'step r1')
      finish()
      return np.zeros(())

    return run
  network.generator.load_state_dict({name: torch.from_numpy(x) for name, x in weights(config).items()})
  network.generator.eval()
  if task == 'sample':
    return lambda: network.sample(batch_size).cpu().numpy()

  def forward():
    x, t, z = (torch.from_numpy(array).to(device) for array in inputs(config, batch_size))
    with torch.no_grad():
      x = x.permute(0, 3, 1, 2).contiguous(memory_format=network.layout)
      return network.predict(x, t, z).permute(0, 2, 3, 1).cpu().numpy()

  return forward


def worker(task: str, row: str, out: str, args: argparse.Namespace) -> None:
  """Prints the seconds of the first call, with compilation, and computes once more per line on standard input."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
  side, _, variant = row.partition(' ')
  config = make_config(args.config, args.batch_size, variant if side == OURS else 'float32')
  if side == OURS:
    run = our_run(task, variant, config)
  else:
    run = torch_run(task, variant, config, args.reference, args.device, args.threads, args.use_kernels)
  start = time.perf_counter()
  result = run()
  print(time.perf_counter() - start, flush=True)
  np.save(out, result)
  for _ in sys.stdin:
    start, start_processor = time.perf_counter(), time.process_time()
    run()
    print(time.perf_counter() - start, time.process_time() - start_processor, flush=True)


def rows_of(task: str, args: argparse.Namespace) -> list[str]:
  """ddgan_jax first, then PyTorch's variants; each training step as published and without unused work."""
  ours = [f'{OURS} {dtype}' for dtype in args.dtypes]
  if not task.startswith('step'):
    return ours + [f'torch {variant}' for variant in args.variants]
  return ours + [f'torch {variant} {how}' for variant in args.variants for how in args.steps]


def measure(task: str, rows: list[str], args: argparse.Namespace) -> None:
  """Starts a process per row, lets them take turns, and prints their table."""
  with tempfile.TemporaryDirectory() as folder:
    outs = {row: os.path.join(folder, f'{i}.npy') for i, row in enumerate(rows)}
    settings = json.dumps(vars(args))
    workers, first_calls = {}, {}
    for row, out in outs.items():  # one after the other, so that each compiles alone
      workers[row] = subprocess.Popen(
          [sys.executable, __file__, '--reference', '', '--worker', json.dumps([task, row, out, settings])],
          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
          env={**os.environ, 'JAX_PLATFORMS': args.device, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'})
      first_calls[row] = workers[row].stdout.readline().strip()
    seconds: dict[str, list[list[float]]] = {row: [] for row in rows}
    failed = [row for row, first_call in first_calls.items() if not first_call]
    for row in failed:
      print(f'| {task} | {row} | failed, see the message above |', flush=True)
    for k in range(args.rounds + 2):
      for row, process in workers.items():
        if row in failed:
          continue
        process.stdin.write('\n')
        process.stdin.flush()
        answer = [float(x) for x in process.stdout.readline().split()]
        if not answer:
          print(f'| {task} | {row} | failed, see the message above |', flush=True)
          failed.append(row)
        elif k > 1:  # the first rounds wait for other processes to start, and warm up
          seconds[row].append(answer)
    for process in workers.values():
      process.communicate()
    rows = [row for row in rows if row not in failed]
    if not rows:
      return
    found = {row: np.load(outs[row]) for row in rows}
  medians = {row: np.median(answers, axis=0) for row, answers in seconds.items() if answers}
  ours = medians[rows[0]]
  for row in rows:
    (median, processor), wall = medians[row], [answer[0] for answer in seconds[row]]
    apart = np.abs(found[row] - found[rows[0]]).max() / np.abs(found[rows[0]]).max() if task == 'forward' else None
    cells = (
        task, row, f'{1e3 * median:,.0f} ({1e3 * min(wall):,.0f} to {1e3 * max(wall):,.0f})',
        f'{args.batch_size / median:.2f}', f'{median / ours[0]:.2f}', f'{1e3 * processor:,.0f}',
        f'{processor / ours[1]:.2f}', f'{float(first_calls[row]):.1f}', '' if apart is None else f'{apart:.0e}')
    print(f'| {" | ".join(cells)} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--reference', required=True, help='folder of the checkout')
  parser.add_argument('--config', default='cifar10', help='a recipe of configs/')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=TASKS)
  parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
  parser.add_argument('--variants', nargs='+', default=None, help='how PyTorch runs: eager, channels_last, compile, '
                      'tf32, bf16, or combinations in quotes')
  parser.add_argument('--steps', nargs='+', default=['published', 'best'], choices=('published', 'best'))
  parser.add_argument('--dtypes', nargs='+', default=None, choices=('float32', 'bfloat16'))
  parser.add_argument('--use_kernels', action='store_true', help="use the reference's CUDA operations, which need nvcc")
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    task, row, out, settings = json.loads(args.worker)
    worker(task, row, out, argparse.Namespace(**json.loads(settings)))
    return
  if not os.path.isdir(args.reference):
    parser.error(f'--reference: no folder {args.reference!r}')
  args.reference = os.path.abspath(args.reference)
  args.variants = args.variants or list(GPU_VARIANTS if args.device == 'cuda' else CPU_VARIANTS)
  args.dtypes = args.dtypes or (['bfloat16', 'float32'] if args.device == 'cuda' else ['float32'])
  print(f'{args.config}, batch {args.batch_size}, {args.threads} threads, {args.rounds} rounds; load '
        f'{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
  print('| task | implementation | ms, median (fastest to slowest) | images/s | time relative to first row | CPU ms | '
        'times the first row | first call, s | difference |\n|---|---|---|---|---|---|---|---|---|', flush=True)
  for task in args.tasks:
    measure(task, rows_of(task, args), args)
  print(f'load at the end {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  main()
