"""Compares samples of measurements, given a condition, with a distribution that is known in closed form.

    python benchmarks/linear_gaussian.py --workdir runs/linear_gaussian

A condition c is a smooth field of 8x8 values, an image has two channels of float32:

    x[0] = 20 + 4 c + 3 e1
    x[1] = 20 - 3 c + 1.5 e1 + 2 e2,    e1, e2 ~ N(0, 1), the same for all pixels

so the mean of x given c is linear in c, and the standard deviations are 3 and 2.5, with a correlation of 0.6. The
table compares 1,000 samples of each of ten new conditions with them. Prints it after the training; the same command
resumes, and measures again.

Result (2026-11-27, one shared CPU core, 40 minutes, one seed): standard deviations 1.03 and 1.04 times the closed form
on average (0.92 to 1.12 for single conditions), correlation 0.64; the mean is wrong by 0.30 and 0.24 RMS, which is 1.5%
and 1.2% of its value but 20% and 22% of its variation with c (sampling error: 0.09 and 0.08).
"""

import argparse
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax.cli import image_output
from ddgan_jax.config import recipes
from ddgan_jax.training import loop

RANGE = 3.0, 37.0
OFFSET, SLOPES, NOISE = 20.0, np.array([4.0, -3.0]), np.array([[3.0, 0.0], [1.5, 2.0]])
COVARIANCE = NOISE @ NOISE.T
_SIZE, _WAVES = 8, 3


def draw_conditions(rng, count):
  """[count, 8, 8, 1] float32 in [-1, 1]: means of three waves of random direction and phase."""
  y, x = np.mgrid[:_SIZE, :_SIZE] / _SIZE
  angle, phase = rng.uniform(0, 2 * math.pi, (2, count, _WAVES, 1, 1))
  waves = np.sin(math.pi * (np.cos(angle) * x + np.sin(angle) * y) + phase)
  return waves.mean(1)[..., None].astype(np.float32)


def mean_of(conditions):
  """[n, 8, 8, 1] → [n, 8, 8, 2]: the mean of x given each condition."""
  return OFFSET + SLOPES * conditions


def draw_images(rng, conditions):
  """One sample of x for each condition."""
  noise = rng.standard_normal((len(conditions), 1, 1, 2)) @ NOISE.T
  return (mean_of(conditions) + noise).astype(np.float32)


def make_config(path, num_steps):
  """Config of the run: the networks of `digits`."""
  fields = recipes.load('digits')
  fields.data.update(
      name='npz', path=str(path), num_channels=2, value_range=RANGE, condition='pairs', pair_channels=1,
      pair_range=(-1.0, 1.0), batch_size=64)
  fields.optim.r1_gamma = 0.02  # the values of a channel differ less than those of images
  fields.train.update(num_steps=num_steps, num_samples=60)
  return config_lib.from_config_dict(fields)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--num_steps', type=int, default=8_000)
  parser.add_argument('--num', type=int, default=1_000, help='samples of each condition')
  parser.add_argument('--conditions', type=int, default=10)
  args = parser.parse_args()
  args.workdir.mkdir(parents=True, exist_ok=True)
  path = args.workdir.absolute() / 'linear_gaussian.npz'
  rng = np.random.default_rng(0)
  conditions = draw_conditions(rng, 20_000)
  np.savez(path, images=draw_images(rng, conditions), conditions=conditions)
  folder = str(args.workdir / 'run')
  if not loop.train_and_evaluate(make_config(path, args.num_steps), folder):
    return

  run = ddgan_jax.load(folder)
  new = draw_conditions(np.random.default_rng(1), args.conditions)
  samples = image_output.generate(run, args.num * len(new), seed=0, batch_size=1_000, condition=new)
  samples = samples.reshape(len(new), args.num, _SIZE, _SIZE, 2)
  error = samples.mean(1) - mean_of(new)  # [n, 8, 8, 2]
  stds, true_stds = samples.std(1), np.sqrt(np.diag(COVARIANCE))
  signal = mean_of(new) - OFFSET
  pixel = samples[:, :, _SIZE // 2, _SIZE // 2]
  correlation = np.mean([np.corrcoef(values.T)[0, 1] for values in pixel])
  print(f'n = {args.num:,} samples of each of {len(new)} conditions, step {run.step:,}, '
        f'{run.schedule.num_timesteps} evaluations\n')
  print('| channel | error of the mean, RMS / RMS of its signal | standard deviation / closed form: mean, range over '
        'conditions |\n|---|---|---|')
  for channel in range(2):
    mean_error = np.sqrt((error[..., channel]**2).mean() / (signal[..., channel]**2).mean())
    ratio = stds[..., channel].mean((1, 2)) / true_stds[channel]
    print(f'| {channel} | {mean_error:.1%} | {ratio.mean():.3f}, {ratio.min():.3f} to {ratio.max():.3f} |')
  print(f'\ncorrelation of the channels: {correlation:.3f} (closed form {COVARIANCE[0, 1] / true_stds.prod():.3f})')
  print(f'standard error of a mean of {args.num:,} samples: {true_stds[0] / math.sqrt(args.num):.3f} and '
        f'{true_stds[1] / math.sqrt(args.num):.3f}; RMS of the error: '
        f'{np.sqrt((error[..., 0]**2).mean()):.3f} and {np.sqrt((error[..., 1]**2).mean()):.3f}')


if __name__ == '__main__':
  main()
