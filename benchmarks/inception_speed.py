"""FID features per second, compared to PyTorch with the same network: `python benchmarks/inception_speed.py`.

Both compute pool3 and logits of the same random uint8 images of 32x32 with the same random weights, in float32, in
separate processes on the same `--threads` cores. They take turns, so that other load affects both; the table has
medians over the rounds and their ratio. CPU time, summed over threads, is more reliable on a busy machine. The last
column is the difference between the features and PyTorch's. Requires PyTorch (`pip install -e '.[torch]'`), which runs
the network as written, and with the channels_last memory format, which is often faster on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np

ROWS = {'ddgan_jax': 'ddgan_jax', 'torch': 'PyTorch', 'torch channels_last': 'PyTorch, channels_last'}


def tensor_shapes() -> dict[str, tuple[int, ...]]:
  """Every tensor of the network, taken from the PyTorch version below."""
  return {name: tuple(tensor.shape) for name, tensor in torch_network().state_dict().items()}


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Weights that preserve the scale of activations, as functions of the tensor names."""
  tensors = {}
  for name, shape in shapes.items():
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
      x *= np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
    elif name.endswith('running_var'):
      x = 1 + np.abs(x) / 10
    else:
      x = x / 10 + name.endswith('bn.weight')
    tensors[name] = np.zeros(shape, np.int64) if name.endswith('num_batches_tracked') else x.astype(np.float32)
  return tensors


def torch_network():
  """The FID Inception network in plain PyTorch, layer by layer as published, without folding or merging."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
      super().__init__()
      self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
      self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
      return F.relu(self.bn(self.conv(x)), inplace=True)

  def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

  class Block(nn.Module):
    """Branches, each a list of (name, outputs, kernel, stride, padding); a list of lists ends in parallel layers."""

    def __init__(self, inputs, branches, pool):
      super().__init__()
      self.branches, self.pool = branches, pool
      for layers in branches:
        channels = inputs
        for layer in layers:
          for name, outputs, *rest in layer if isinstance(layer, list) else [layer]:
            self.add_module(name, Conv(channels, outputs, *rest))
          channels = outputs

    def forward(self, x):
      found = []
      for layers in self.branches:
        y = self.pool(x) if layers[0][0] == 'branch_pool' else x
        for layer in layers:
          if isinstance(layer, list):
            y = torch.cat([getattr(self, name)(y) for name, *_ in layer], 1)
          else:
            y = getattr(self, layer[0])(y)
        found.append(y)
      if not any(layers[0][0] == 'branch_pool' for layers in self.branches):
        found.append(self.pool(x))
      return torch.cat(found, 1)

  def max_pool(x):
    return F.max_pool2d(x, 3, 2)

  def block_35(inputs, pooled):
    return Block(inputs, [
        [('branch1x1', 64, 1)],
        [('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5, 1, 2)],
        [('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3, 1, 1), ('branch3x3dbl_3', 96, 3, 1, 1)],
        [('branch_pool', pooled, 1)]], average)

  wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))

  def block_17(n):
    return Block(768, [
        [('branch1x1', 192, 1)],
        [('branch7x7_1', n, 1), ('branch7x7_2', n, *wide), ('branch7x7_3', 192, *tall)],
        [('branch7x7dbl_1', n, 1), ('branch7x7dbl_2', n, *tall), ('branch7x7dbl_3', n, *wide),
         ('branch7x7dbl_4', n, *tall), ('branch7x7dbl_5', 192, *wide)],
        [('branch_pool', 192, 1)]], average)

  def pair(name):
    return [(f'{name}a', 384, (1, 3), 1, (0, 1)), (f'{name}b', 384, (3, 1), 1, (1, 0))]

  def block_8(inputs, pool):
    return Block(inputs, [
        [('branch1x1', 320, 1)],
        [('branch3x3_1', 384, 1), pair('branch3x3_2')],
        [('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3, 1, 1), pair('branch3x3dbl_3')],
        [('branch_pool', 192, 1)]], pool)

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
      self.Conv2d_2a_3x3 = Conv(32, 32, 3)
      self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
      self.Conv2d_3b_1x1 = Conv(64, 80, 1)
      self.Conv2d_4a_3x3 = Conv(80, 192, 3)
      self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_35(192, 32), block_35(256, 64), block_35(288, 64)
      self.Mixed_6a = Block(288, [
          [('branch3x3', 384, 3, 2)],
          [('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3, 1, 1), ('branch3x3dbl_3', 96, 3, 2)]], max_pool)
      self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(block_17, (128, 160, 160, 192))
      self.Mixed_7a = Block(768, [
          [('branch3x3_1', 192, 1), ('branch3x3_2', 320, 3, 2)],
          [('branch7x7x3_1', 192, 1), ('branch7x7x3_2', 192, *wide), ('branch7x7x3_3', 192, *tall),
           ('branch7x7x3_4', 192, 3, 2)]], max_pool)
      self.Mixed_7b = block_8(1280, average)
      self.Mixed_7c = block_8(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
      self.fc = nn.Linear(2048, 1008)

    def forward(self, images):
      x = 2 * F.interpolate(images.float() / 255, (299, 299), mode='bilinear', align_corners=False) - 1
      x = max_pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
      x = max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
      for name, block in self.named_children():
        if name.startswith('Mixed'):
          x = block(x)
      pool3 = x.mean((2, 3))
      return pool3, self.fc(pool3)

  return Network().eval()


def worker(row: str, batch_size: int, threads: int, out: str) -> None:
  """Computes once per line on standard input and prints the seconds; the first call includes compilation."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  images = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
  weights = random_weights(tensor_shapes())
  if row == 'ddgan_jax':
    import jax

    from ddgan_jax.metrics.features import inception
    from ddgan_jax.parallel import compilation

    params = jax.device_put(inception.params_from_state_dict(weights))
    features = compilation.jit(inception.features)
    run = lambda: [np.asarray(x) for x in features(params, images)]
  else:
    import torch

    torch.set_num_threads(threads)
    network = torch_network()
    network.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in weights.items()})
    layout = torch.channels_last if 'channels_last' in row else torch.contiguous_format
    network = network.to(memory_format=layout)

    def run():
      with torch.inference_mode():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return [x.numpy() for x in network(x)]

  np.savez(out, *run())
  for _ in sys.stdin:
    start, start_processor = time.perf_counter(), time.process_time()
    run()
    print(time.perf_counter() - start, time.process_time() - start_processor, flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--batch_sizes', type=int, nargs='+', default=[8, 32])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    worker(*json.loads(args.worker))
    return
  print('| batch | network | images/s | seconds per batch, median (fastest to slowest) | ratio to PyTorch | '
        'CPU seconds per batch | ratio to PyTorch | difference |')
  print('|---|---|---|---|---|---|---|---|')
  for batch_size in args.batch_sizes:
    with tempfile.TemporaryDirectory() as folder:
      outs = {row: os.path.join(folder, f'{row}.npz') for row in ROWS}
      workers = {
          row: subprocess.Popen(
              [sys.executable, __file__, '--worker', json.dumps([row, batch_size, args.threads, out])],
              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
          for row, out in outs.items()}
      seconds = {row: [] for row in ROWS}
      for k in range(args.rounds + 2):
        for row, process in workers.items():
          process.stdin.write('\n')
          process.stdin.flush()
          answer = [float(x) for x in process.stdout.readline().split()]
          if k > 1:  # the first rounds wait for other processes to start, and warm up
            seconds[row].append(answer)
      for process in workers.values():
        process.communicate()
      found = {row: np.load(out)['arr_0'] for row, out in outs.items()}
    medians = {row: np.median(answers, axis=0) for row, answers in seconds.items()}
    for row, name in ROWS.items():
      (median, processor), (wall, _) = medians[row], zip(*seconds[row])
      ratio, processor_ratio = medians['torch'] / medians[row]
      apart = np.abs(found[row] - found['torch']).max() / np.abs(found['torch']).max()
      cells = (
          batch_size, name, f'{batch_size / median:.1f}', f'{median:.2f} ({min(wall):.2f} to {max(wall):.2f})',
          f'{ratio:.2f}', f'{processor:.2f}', f'{processor_ratio:.2f}', f'{apart:.0e}')
      print(f'| {" | ".join(map(str, cells))} |', flush=True)


if __name__ == '__main__':
  main()
