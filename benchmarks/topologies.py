"""Compares the same run on other numbers of devices and processes: its losses and its final parameters.

    python benchmarks/topologies.py --folder /tmp/topologies

The real command trains a small digits network on simulated CPU devices in different topologies; prints the largest
relative difference of the first 30 steps' losses to those on one device. Then it compares 60 steps on 8 devices with 60
steps that move by SIGTERM and resume: about 20 on 8 devices, 20 on 2 processes of 2 (`parallel.fsdp=4`), and 20 on one.
High learning rates and R1 at every step amplify differences.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.runs.checkpoints import Checkpoints

# A batch of 64 is 8 devices x 4 microbatches x groups of 2 rows.
NETWORK = {
    'data.batch_size': 64, 'generator.num_channels_dae': 8, 'generator.ch_mult': '1,',
    'generator.attn_resolutions': '8,', 'generator.nz': 4, 'generator.z_emb_dim': 8, 'generator.n_mlp': 1,
    'discriminator.ngf': 4, 'discriminator.t_emb_dim': 8, 'discriminator.stddev_group': 2, 'optim.lazy_reg': 1,
    'optim.lr_g': 1e-3, 'optim.lr_d': 1e-3, 'train.num_steps': 60, 'train.log_every': 1, 'train.num_samples': 4,
    'train.sample_every': 1_000_000, 'train.checkpoint_every': 1_000_000}
TOPOLOGIES = (
    ('1 device', 1, 1, {}),
    ('8 devices', 1, 8, {}),
    ('2 processes x 4 devices', 2, 4, {}),
    ('8 devices, fsdp 4 x data 2', 1, 8, {'parallel.fsdp': 4}),
    ('1 device, accumulation 4', 1, 1, {'parallel.accumulation': 4}),
    ('8 devices, accumulation 4', 1, 8, {'parallel.accumulation': 4}),
)
MOVES = ((20, 1, 8, {}), (40, 2, 2, {'parallel.fsdp': 4}), (60, 1, 1, {}))
LOSSES = ('loss/d', 'loss/g')


def train(workdir: pathlib.Path, until: int, processes: int, devices: int, fields: dict) -> None:
  """Runs the command on `processes` x `devices`, and stops it after step `until`; exits if it fails."""
  process = subprocess.Popen(
      [sys.executable, 'launch/local.py', '--processes', str(processes), '--devices', str(devices), '--',
       sys.executable, '-m', 'ddgan_jax.main', '--config', 'configs/digits.py', '--workdir', str(workdir),
       *(f'--config.{name}={value}' for name, value in {**NETWORK, **fields}.items())],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  output = []
  for line in process.stdout:
    output.append(line)
    if line.startswith(f'[0] step {until}/') and until < NETWORK['train.num_steps']:
      process.send_signal(signal.SIGTERM)
  if process.wait():
    sys.exit(''.join(output))


def losses(workdir: pathlib.Path) -> np.ndarray:
  """Losses [steps, 2] float64 from the events; the later ones if a step was repeated."""
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  events = EventAccumulator(str(workdir), size_guidance={'tensors': 0}).Reload()
  columns = [{event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
             for tag in LOSSES]
  return np.array([[column[step] for column in columns] for step in sorted(columns[0])])


def parameters(workdir: pathlib.Path) -> np.ndarray:
  """All parameters of G, D and the EMA of the last checkpoint, [n]."""
  config = config_lib.from_json((workdir / 'config.json').read_text())
  checkpoints = Checkpoints(str(workdir))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = checkpoints.restore(train_state.abstract_state(config, device), checkpoints.latest_step())
  leaves = jax.tree.leaves((state.g_params, state.d_params, state.ema_params))
  return np.concatenate([np.ravel(leaf) for leaf in leaves])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
  return float((np.abs(found - expected) / np.abs(expected)).max())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='for the workdirs; must not exist')
  folder = parser.parse_args().folder
  if folder.exists():
    parser.error(f'--folder: {folder} exists; choose another one, or delete it')
  folder.mkdir(parents=True)
  print('| 30 steps on | loss_d, from to | loss_g, from to | worst relative difference of a loss |\n|---|---|---|---|')
  expected = None
  for i, (name, *where, fields) in enumerate(TOPOLOGIES):
    train(folder / str(i), 30, *where, fields)
    found = losses(folder / str(i))[:30]
    expected = found if expected is None else expected
    ranges = ' | '.join(f'{column.min():.3f} {column.max():.3f}' for column in found.T)
    print(f'| {name} | {ranges} | {relative(found, expected):.1e} |', flush=True)
  train(folder / 'stayed', 60, 1, 8, {})
  for move in MOVES:
    train(folder / 'moved', *move)
  stayed, moved = (parameters(folder / name) for name in ('stayed', 'moved'))
  print(f'\n60 steps on 8 devices, and about 20 each on 8 devices, 2 processes x 2 and 1 device: the losses differ by '
        f'{relative(losses(folder / "moved"), losses(folder / "stayed")):.1e} at most, relatively; the '
        f'{stayed.size:,} parameters of G, D and EMA by {np.abs(moved - stayed).max():.1e} at most, and by '
        f'{np.linalg.norm(moved - stayed) / np.linalg.norm(stayed):.1e} in relative L2.')


if __name__ == '__main__':
  main()
