"""Compares ways to enlarge held-out digits from 4x4 to 8x8 pixels; needs two or three runs:

    ddgan train --config digits_superres
    ddgan train --config digits_superres --config.method=gaussian --config.diffusion.num_timesteps=1 \\
      --config.objective.reconstruction_weight=0 --workdir runs/l2
    ddgan train --config digits
    python benchmarks/superres.py --workdir runs/digits_superres --l2 runs/l2 --unconditional runs/digits

The rows are the true digits, nearest neighbour, bicubic, the same network trained with L2 (one evaluation),
`ddgan edit --task superres` with an unconditional run, and the conditional run. The classifier is that of
`digits_quality.py`; sharpness is the mean absolute difference of neighbouring pixels, relative to the true digits.
Writes a figure with --figure. With an unconditional run, 299 digits take more than ten minutes on two CPU cores; use
`--num 100`.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np
from PIL import Image

import ddgan_jax
from benchmarks import digits_quality
from ddgan_jax import sampling
from ddgan_jax.cli import image_output
from ddgan_jax.data import conditions, pipeline, sources
from ddgan_jax.editing import noise_optimization
from ddgan_jax.metrics import restoration
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import grids

SAMPLES = 8  # per digit
_SHOWN = 10  # digits in the figure


def sharpness(images):
  """Mean absolute difference of neighbouring pixels of uint8 images [..., 8, 8, 1]."""
  x = images.astype(float)
  return np.abs(np.diff(x, axis=-2)).mean() + np.abs(np.diff(x, axis=-3)).mean()


def resized(small, resample):
  """Enlarges uint8 [n, 4, 4, 1] with Pillow, as one sample each: [n, 1, 8, 8, 1]."""
  return np.stack([np.asarray(Image.fromarray(image[..., 0]).resize((8, 8), resample)) for image in small])[
      :, None, ..., None]


def sampled(run, condition, count):
  """`count` samples of each condition, [n, count, 8, 8, 1] uint8."""
  images = image_output.generate(run, count * len(condition), seed=0, batch_size=800, condition=condition)
  return images.reshape(len(condition), count, 8, 8, 1)


def draw(path, found):
  """Draws up to two samples of each method in rows, the true digits last."""
  from matplotlib.figure import Figure

  rows = [(name if i == 0 else '', samples[:_SHOWN, i]) for name, samples in found.items() if name != 'true digits'
          for i in range(min(2, samples.shape[1]))]
  rows.append(('true digits', found['true digits'][:_SHOWN, 0]))
  figure = Figure(figsize=(8, 0.66 * len(rows)), dpi=110, layout='constrained')
  for i, (name, images) in enumerate(rows):
    axes = figure.add_subplot(len(rows), 1, i + 1)
    axes.imshow(grids.make_grid(images, columns=len(images))[..., 0], cmap='gray', vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(name.replace('`', '').replace(', ', ',\n'), rotation=0, ha='right', va='center', fontsize=9)
  figure.savefig(path, bbox_inches='tight')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, help='a run of digits_superres')
  parser.add_argument('--l2', help='the same network trained with method=gaussian and T = 1')
  parser.add_argument('--unconditional', help='a run of digits')
  parser.add_argument('--num', type=int, default=299, help='held-out digits')
  parser.add_argument('--figure', help='PNG to write')
  args = parser.parse_args()

  run = ddgan_jax.load(args.workdir)
  train, (images, labels) = digits_quality.real_digits()
  judge = digits_quality.fit_judge(*train)
  truth, labels = images[:args.num].reshape(-1, 8, 8, 1), labels[:args.num]
  source = sources.ArraySource(truth)
  condition = pipeline.stored_conditions(source, run.config.data, np.arange(len(truth)))
  small = conditions.to_uint8(condition)
  found = {
      'true digits': truth[:, None], 'nearest neighbour': resized(small, Image.Resampling.NEAREST),
      'bicubic': resized(small, Image.Resampling.BICUBIC)}
  if args.l2:
    found['L2, 1 evaluation'] = sampled(ddgan_jax.load(args.l2), condition, 1)
  if args.unconditional:
    other = ddgan_jax.load(args.unconditional)
    edit = compilation.jit(lambda small: sampling.to_uint8(noise_optimization.super_resolve(
        jax.random.key(0), other.generator_fn, other.schedule, small, other.config.generator.nz, 2)))
    edited = np.asarray(edit(condition.repeat(SAMPLES, axis=0)))
    found['`ddgan edit`, unconditional run'] = edited.reshape(-1, SAMPLES, 8, 8, 1)
  found[f'conditional run, {run.schedule.num_timesteps} evaluations'] = sampled(run, condition, SAMPLES)

  print(f'n = {len(truth)} held-out digits\n')
  print('| method | samples | read as the true digit | PSNR of a sample, dB | PSNR of their mean, dB | sharpness | '
        'standard deviation of samples |\n|---|---|---|---|---|---|---|')
  for name, samples in found.items():
    n, k = samples.shape[:2]
    predicted = judge.predict(digits_quality.to_float(samples.reshape(n * k, 64))).reshape(n, k)
    single = np.asarray(restoration.psnr(samples, truth[:, None])).mean()
    of_mean = np.asarray(restoration.psnr(samples.astype(np.float32).mean(1), truth)).mean()
    decibels = ' | ' if name == 'true digits' else f'{single:.2f} | {of_mean:.2f}'
    print(f'| {name} | {k} | {(predicted == labels[:, None]).mean():.1%} | {decibels} | '
          f'{sharpness(samples) / sharpness(truth):.2f} | {samples.std(1).mean():.1f} |')
  if args.figure:
    draw(args.figure, {'4x4 pixels': conditions.picture(condition, run.config.data)[:, None], **found})


if __name__ == '__main__':
  main()
