"""Editing of digits, as a picture and in numbers.

    python benchmarks/editing_figure.py --workdir runs/digits4 [--out benchmarks/editing.png] [--num 299]

Four tasks, two rows each: inpainting of held-out digits, crude drawings, interpolation between samples, and
super-resolution of held-out digits shrunk to 4x4. The numbers: `--num` held-out digits whose lower half is filled in,
once each; `--num 0` only draws the picture. runs/digits4 is a run with T = 4:
`ddgan train --config digits --config.diffusion.num_timesteps=4 --workdir runs/digits4`.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from typing import NamedTuple

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
from ddgan_jax.reporting.canvas import Canvas

LOWER_HALF = np.arange(8)[:, None, None] >= 4
RIGHT_HALF = np.arange(8)[None, :, None] >= 4
PAIRS = ((0, 1), (2, 3))  # numbers of samples of seed 0
INPUT, RESULT = '#ff7f0e', '#1f77b4'  # colours of the frames
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


class Row(NamedTuple):
  """Inputs [m, 8, 8, 1] uint8, drawn in a frame under their heads, and results [9 - m, 8, 8, 1]."""

  heads: tuple[str, ...]
  inputs: np.ndarray
  results: np.ndarray


def tasks(run: ddgan_jax.Run, digits: np.ndarray) -> dict[str, list[Row]]:
  """The rows of each task, of held-out digits [n, 8, 8, 1] uint8."""
  generator_fn, schedule, nz = run.generator_fn, run.schedule, run.config.generator.nz
  repeated = lambda image, count: np.repeat(image[None], count, axis=0)
  rows = {'Inpaint': [], 'Drawing\nto digit': [], 'Interpolate\ntwo samples': [], 'Super-\nresolution': []}
  for k, (image, mask) in enumerate(zip(digits, (LOWER_HALF, RIGHT_HALF))):
    inpaint = functools.partial(noise_optimization.inpaint, generator_fn=generator_fn, schedule=schedule, latent_dim=nz)
    results = compilation.jit(inpaint)(jax.random.key(k), image=repeated(to_float(image), 7), mask=mask)
    kept = np.where(mask, np.uint8(128), image)
    rows['Inpaint'].append(Row(('original', 'kept'), np.stack([image, kept]), sampling.to_uint8(results)))
  for k, image in enumerate(drawings()[1:]):
    results = replacement.image_to_image(
        jax.random.key(k), generator_fn, schedule, repeated(to_float(image), 8), nz,
        from_level=1)
    rows['Drawing\nto digit'].append(Row(('drawing',), image[None], sampling.to_uint8(results)))
  for pair in PAIRS:
    keys = [jax.random.fold_in(jax.random.key(0), number) for number in pair]
    frames = sampling.to_uint8(interpolation.interpolate(
        *keys, generator_fn, schedule, run.config.image_shape, nz, num_frames=9))
    rows['Interpolate\ntwo samples'].append(Row((), frames[:0], frames))
  for k, image in enumerate(digits[3:5]):
    small = replacement.block_means(to_float(image), 2)
    super_resolve = compilation.jit(
        lambda key, small: noise_optimization.super_resolve(key, generator_fn, schedule, small, nz, 2))
    results = super_resolve(jax.random.key(k), repeated(small, 7))
    inputs = np.stack([image, sampling.to_uint8(replacement.enlarge(small, 2))])
    rows['Super-\nresolution'].append(Row(('original', '4x4'), inputs, sampling.to_uint8(results)))
  return rows


def picture(run: ddgan_jax.Run, digits: np.ndarray) -> np.ndarray:
  """The tasks one below the other, each with its name and the heads of its inputs."""
  left, side, gap, head = 1.4, 0.74, 0.06, 0.36
  pitch = side + gap
  rows = tasks(run, digits)
  canvas = Canvas(left + 9 * pitch + 0.3, 0.45 + sum(head + len(task) * pitch for task in rows.values()))
  canvas.text(left / 2 + 0.15 + 4.5 * pitch, 0.12,
              f'Editing with a DDGAN trained on digits, T = {run.schedule.num_timesteps}', size=13, weight='bold')
  y = 0.42
  for name, task in rows.items():
    y += head
    canvas.text(0.1, y + len(task) * pitch / 2 - 0.2, name, size=11, weight='bold', ha='left')
    given = len(task[0].heads)
    for column, text in enumerate(task[0].heads):
      canvas.text(left + column * pitch + side / 2, y - 0.2, text, size=10, color=INPUT)
    first = left + given * pitch + (0.15 if given else 0)
    if given:
      canvas.text(first + (9 - given) * pitch / 2, y - 0.2, 'results', size=10, color=RESULT)
    else:
      canvas.text(first + side / 2, y - 0.2, 'sample A', size=10, color=INPUT)
      canvas.text(first + 8 * pitch + side / 2, y - 0.2, 'sample B', size=10, color=INPUT)
    for row in task:
      for column, image in enumerate(row.inputs):
        canvas.panel(image, left + column * pitch, y, side, INPUT)
      for column, image in enumerate(np.asarray(row.results)):
        is_end = not given and column in (0, len(row.results) - 1)
        canvas.panel(image, first + column * pitch, y, side, INPUT if is_end else RESULT)
      y += pitch
  return canvas.pixels()


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
  if arguments.num:
    print_numbers(run, arguments.num)


if __name__ == '__main__':
  main()
