"""Editing of digits, as a picture and in numbers.

    python benchmarks/editing_figure.py --workdir runs/digits [--out benchmarks/editing.png] [--num 299]

The picture has ten columns: three rows of inpainting (a held-out digit, its kept part, eight results), three of strokes
(a crude drawing, nine results), two of interpolation (ten frames), two of super-resolution (a digit shrunk to 4x4, nine
results). The numbers are for the inpainted lower half of `--num` held-out digits, one result each.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import digits_quality

import ddgan_jax
from ddgan_jax import sampling
from ddgan_jax.editing import interpolation, noise_optimization, replacement
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import grids

LOWER_HALF = np.arange(8)[:, None, None] >= 4
RIGHT_HALF = np.arange(8)[None, :, None] >= 4
# A vertical bar, a ring, and a hook.
STROKES = '''
...##...  ..####..  .######.
...##...  .##..##.  .....##.
...##...  .#....#.  ....##..
...##...  .#....#.  ...##...
...##...  .#....#.  ...##...
...##...  .#....#.  ..##....
...##...  .##..##.  ..##....
...##...  ..####..  ..##....
'''


def drawings() -> np.ndarray:
  """[3, 8, 8, 1] uint8."""
  rows = [line.split() for line in STROKES.split('\n') if line]
  return np.array([[[255 * (pixel == '#') for pixel in part] for part in column] for column in zip(*rows)],
                  np.uint8)[..., None]


def to_float(images: np.ndarray) -> np.ndarray:
  return images.astype(np.float32) / np.float32(127.5) - 1


def picture(run: ddgan_jax.Run, digits: np.ndarray) -> np.ndarray:
  """The rows, of held-out digits [n, 8, 8, 1] uint8."""
  generator_fn, schedule, nz = run.generator_fn, run.schedule, run.config.generator.nz
  repeated = lambda image, count: np.repeat(image[None], count, axis=0)
  rows = []
  for k, (image, mask) in enumerate(zip(digits, (LOWER_HALF, LOWER_HALF, RIGHT_HALF))):
    inpaint = functools.partial(noise_optimization.inpaint, generator_fn=generator_fn, schedule=schedule, latent_dim=nz)
    results = compilation.jit(inpaint)(jax.random.key(k), image=repeated(to_float(image), 8), mask=mask)
    rows.append([image, np.where(mask, np.uint8(128), image), *sampling.to_uint8(results)])
  for k, image in enumerate(drawings()):
    results = replacement.image_to_image(
        jax.random.key(k), generator_fn, schedule, repeated(to_float(image), 9), nz, from_level=1)
    rows.append([image, *sampling.to_uint8(results)])
  for pair in ((0, 1), (2, 3)):
    keys = [jax.random.fold_in(jax.random.key(0), number) for number in pair]
    rows.append(sampling.to_uint8(interpolation.interpolate(
        *keys, generator_fn, schedule, run.config.image_shape, nz, num_frames=10)))
  for k, image in enumerate(digits[3:5]):
    small = replacement.block_means(to_float(image), 2)
    super_resolve = compilation.jit(
        lambda key, small: noise_optimization.super_resolve(key, generator_fn, schedule, small, nz, 2))
    results = super_resolve(jax.random.key(k), repeated(small, 9))
    rows.append([sampling.to_uint8(replacement.enlarge(small, 2)), *sampling.to_uint8(results)])
  return grids.make_grid(np.concatenate([np.asarray(row) for row in rows]), columns=10)


def print_numbers(run: ddgan_jax.Run, num: int) -> None:
  """How well the filled-in lower halves of held-out digits go with the upper ones."""
  (images, labels), (held_out, held_out_labels) = digits_quality.real_digits()
  judge = digits_quality.fit_judge(images, labels)
  held_out, held_out_labels = held_out[:num], held_out_labels[:num]
  x = jnp.asarray(to_float(held_out.reshape(-1, 8, 8, 1)))
  known = (jax.random.key(0), run.generator_fn, run.schedule, x, LOWER_HALF, run.config.generator.nz)
  filled = {
      'matching, 100 steps': compilation.jit(lambda: noise_optimization.inpaint(*known)),
      'replacing, 1 pass': compilation.jit(lambda: replacement.inpaint(*known, num_resamples=1)),
      'replacing, 10 passes': compilation.jit(lambda: replacement.inpaint(*known, num_resamples=10)),
      "another digit's lower half": lambda: jnp.where(LOWER_HALF, jnp.roll(x, 1, axis=0), x),
      'the true lower half': lambda: x,
  }
  print(f'{len(x)} held-out digits, step {run.step:,}; agreement: read as the true digit by a support vector machine')
  print('| lower half from | read as the true digit | read surely (> 0.9) |\n|---|---|---|')
  for name, fill in filled.items():
    pixels = np.asarray(sampling.to_uint8(fill())).reshape(-1, 64)
    probabilities = judge.predict_proba(digits_quality.to_float(pixels))
    agreement = (probabilities.argmax(1) == held_out_labels).mean()
    print(f'| {name} | {100 * agreement:.1f}% | {100 * (probabilities.max(1) > 0.9).mean():.1f}% |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--out', default=str(pathlib.Path(__file__).with_name('editing.png')))
  parser.add_argument('--num', type=int, default=299)
  arguments = parser.parse_args()
  compilation.use_persistent_cache()
  run = ddgan_jax.load(arguments.workdir)
  _, (held_out, _) = digits_quality.real_digits()
  grids.save_png(arguments.out, picture(run, held_out.reshape(-1, 8, 8, 1)))
  print(arguments.out, flush=True)
  print_numbers(run, arguments.num)


if __name__ == '__main__':
  main()
