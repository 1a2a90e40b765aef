"""The pictures of the README and the docs; each explains itself without a caption.

    python benchmarks/figures.py samples     --workdir runs/digits                 # digits_samples.png
    python benchmarks/figures.py denoising   --workdir runs/digits4                # denoising.png, denoising.gif
    python benchmarks/figures.py conditional --workdir runs/digits_conditional     # digits_conditional.png
    python benchmarks/figures.py emoji       --workdir runs/emoji_emoji            # emoji_32.png
    python benchmarks/figures.py gaussians25 --workdir runs/compare_gaussians25    # gaussians25.png
    python benchmarks/figures.py quality     --workdir runs/compare_gaussians25    # quality_speed.png
    python benchmarks/figures.py stacked     --workdir runs/stacked_digits         # stacked_digits.png

`--folder` is where the pictures go, by default this folder. runs/digits4 is
`ddgan train --config digits --config.diffusion.num_timesteps=4 --workdir runs/digits4`, and runs/compare_gaussians25 is
`ddgan compare --config gaussians25`. The picture of editing is that of editing_figure.py.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import ddgan_jax
from ddgan_jax.cli import image_output
from ddgan_jax.data import points as data_points
from ddgan_jax.data import sources
from ddgan_jax.metrics import modes
from ddgan_jax.metrics import points as point_metrics
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation
from ddgan_jax.reporting import grids
from ddgan_jax.reporting.canvas import Canvas

REAL, GENERATED = '#2ca02c', '#1f77b4'  # colours of the frames
WIDTH = 9.0  # inches


def method_name(run: ddgan_jax.Run) -> str:
  num_timesteps = run.schedule.num_timesteps
  name = {'ddgan': 'DDGAN', 'gaussian': 'Gaussian diffusion', 'augmented_gan': 'augmented GAN'}[run.config.method]
  return f'{name}, {num_timesteps} network evaluation{"s" if num_timesteps > 1 else ""}'


def real_images(run: ddgan_jax.Run, num: int) -> tuple[np.ndarray, np.ndarray]:
  """`num` images of the run's data, drawn with a fixed seed, and their labels (of a stack: of its first digit)."""
  source, stack = sources.load_source(run.config.data), run.config.data.stack
  images, classes = source.gather(np.random.default_rng(0).permutation(len(source))[:num * stack])
  return np.concatenate(np.split(images, stack), axis=-1), classes[:num]


def samples(workdir: str, folder: pathlib.Path) -> None:
  """Real images beside generated ones."""
  run = ddgan_jax.load(workdir)
  side = (WIDTH - 0.6) / 2
  canvas = Canvas(WIDTH, side + 0.75)
  for i, (title, images, color) in enumerate((
      ('Training data', real_images(run, 64)[0], REAL),
      (f'Samples: {method_name(run)}', image_output.generate(run, 64, 0), GENERATED))):
    x = 0.2 + i * (side + 0.2)
    canvas.text(x + side / 2, 0.18, title, size=13, weight='bold', color=color)
    canvas.panel(grids.make_grid(images), x, 0.55, side, color)
  grids.save_png(folder / 'digits_samples.png', canvas.pixels())


def denoising(workdir: str, folder: pathlib.Path) -> None:
  """What `ddgan sample --trajectory` makes: a strip of four samples, an animation of sixteen."""
  run = ddgan_jax.load(workdir)
  image_output.save_steps(str(folder / 'denoising.png'), image_output.denoise(run, 4, 0))
  image_output.save_steps(str(folder / 'denoising.gif'), image_output.denoise(run, 16, 0))


def conditional(workdir: str, folder: pathlib.Path, rows: int = 6) -> None:
  """A column per class: two real images above generated ones."""
  run = ddgan_jax.load(workdir)
  known = labels.all_labels(run.config.generator)
  real, real_labels = real_images(run, 400)
  real = np.stack([real[real_labels == label][:2] for label in known], axis=1)
  generated = image_output.generate(run, rows * len(known), 0, label=known).reshape(rows, len(known), *real.shape[2:])
  left, top, side, gap = 1.15, 1.05, 0.7, 0.06
  pitch = side + gap
  below = top + 2 * pitch + 0.25
  canvas = Canvas(left + len(known) * pitch + 0.15, below + rows * pitch + 0.1)
  canvas.text(0.5 * (left + len(known) * pitch), 0.12, f'Class-conditional samples: {method_name(run)}',
              size=13, weight='bold')
  canvas.text(left - 0.15, 0.62, 'class', size=13, ha='right')
  for column, label in enumerate(known):
    canvas.text(left + column * pitch + side / 2, 0.6, str(label), size=15)
    for row, images in enumerate((*real, *generated)):
      y = top + row * pitch if row < 2 else below + (row - 2) * pitch
      canvas.panel(images[column], left + column * pitch, y, side, REAL if row < 2 else GENERATED)
  canvas.text(left - 0.15, top + pitch - 0.15, 'real', size=12, ha='right', color=REAL)
  canvas.text(left - 0.15, below + rows * pitch / 2 - 0.15, 'generated', size=12, ha='right', color=GENERATED)
  grids.save_png(folder / 'digits_conditional.png', canvas.pixels())


def emoji(workdir: str, folder: pathlib.Path, rows: int = 4) -> None:
  """A column per class: generated images, each above the training image with the most similar pixels."""
  run = ddgan_jax.load(workdir)
  source = sources.load_source(run.config.data)
  training, _ = source.gather(np.arange(len(source)))
  known = labels.all_labels(run.config.generator)
  generated = image_output.generate(run, rows * len(known), 0, label=known)
  flat = training.reshape(len(training), -1) / 255
  nearest = [np.square(flat - image.ravel() / 255).sum(1).argmin() for image in generated]
  generated = generated.reshape(rows, len(known), *generated.shape[1:])
  nearest = training[nearest].reshape(generated.shape)
  left, top, side, gap = 1.15, 1.0, 0.85, 0.06
  pitch = side + gap
  canvas = Canvas(left + len(known) * pitch + 0.1, top + rows * (2 * pitch + 0.15) + 0.05)
  size = run.config.data.image_size
  canvas.text(0.5 * (left + len(known) * pitch), 0.12, f'Emoji at {size}x{size}: {method_name(run)}', size=13,
              weight='bold')
  for column in range(len(known)):
    canvas.text(left + column * pitch + side / 2, 0.62, source.class_names[column], size=11)
    for row in range(rows):
      y = top + row * (2 * pitch + 0.15)
      canvas.panel(generated[row, column], left + column * pitch, y, side, GENERATED)
      canvas.panel(nearest[row, column], left + column * pitch, y + pitch, side, REAL)
  for row in range(rows):
    y = top + row * (2 * pitch + 0.15)
    canvas.text(left - 0.12, y + side / 2 - 0.1, 'generated', size=11, ha='right', color=GENERATED)
    canvas.text(left - 0.12, y + pitch + side / 2 - 0.1, 'nearest\nin training', size=11, ha='right', color=REAL)
  grids.save_png(folder / f'emoji_{size}.png', canvas.pixels())


def compared(workdir: str) -> list[dict]:
  """The rows of a comparison: title, evaluations, metrics, seconds per 100."""
  return json.loads((pathlib.Path(workdir) / 'comparison.json').read_text())


def cost(row: dict) -> str:
  """Network evaluations, and the time of one compiled call that makes a hundred samples."""
  evaluations = f'{row["evaluations"]:,} evaluation{"s" if row["evaluations"] > 1 else ""}'
  return f'{evaluations}, {milliseconds(row["seconds"])} ms'


def milliseconds(seconds: float) -> str:
  return f'{1e3 * seconds:,.0f}' if seconds > 0.01 else f'{1e3 * seconds:.2g}'


def gaussians25(workdir: str, folder: pathlib.Path, num: int = 2000) -> None:
  """Scatter plots: the data, and each sampler with its share of points near a mode, evaluations and time."""
  real, _ = data_points.draw(num, seed=1)
  of_real = point_metrics.count_point_modes(real)
  panels = [('Real data', '', f'{of_real.in_mode:.0%} near a mode, {of_real.found} of 25 modes', real, REAL)]
  for row in compared(workdir):
    run = ddgan_jax.load(pathlib.Path(workdir) / row['name'], None, row['evaluations'])
    found, near = (row['metrics'][name]['value'] for name in ('modes', 'in_mode'))
    panels.append((row['title'], cost(row), f'{near:.0%} near a mode, {found} of 25 modes',
                   image_output.generate(run, num, 0, num), GENERATED))
  columns = min(len(panels), 3)
  side, top = (WIDTH - 0.2 * (columns + 1)) / columns, 0.85
  rows = -(-len(panels) // columns)
  canvas = Canvas(WIDTH, rows * (side + top) + 0.4)
  for i, (title, price, quality, cloud, color) in enumerate(panels):
    x, y = 0.2 + i % columns * (side + 0.2), i // columns * (side + top)
    canvas.text(x + side / 2, y + 0.2, title, size=12, weight='bold', color=color)
    canvas.text(x + side / 2, y + 0.42, price, size=10)
    canvas.text(x + side / 2, y + 0.6, quality, size=10)
    canvas.panel(cloud.reshape(-1, 2), x, y + top, side, color)
  canvas.text(WIDTH / 2, rows * (side + top) + 0.1,
              f'{num:,} points each. Near a mode: within 3 standard deviations of its centre. ms: per 100 samples.',
              size=9)
  grids.save_png(folder / 'gaussians25.png', canvas.pixels())


def quality(workdir: str, folder: pathlib.Path) -> None:
  """Share of points near a mode against the time of a hundred samples."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows = compared(workdir)
  figure = Figure(figsize=(WIDTH, 4.6), dpi=100, layout='constrained')
  agg = FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  times = [1e3 * row['seconds'] for row in rows]
  shares = [100 * row['metrics']['in_mode']['value'] for row in rows]
  colors = {'one-shot GAN': '#d62728', 'Gaussian diffusion': '#7f7f7f', 'DDGAN': '#1f77b4'}
  middle = np.sqrt(min(times) * max(times))
  for row, time, share in zip(rows, times, shares):
    color = colors.get(row['title'], '#9467bd')
    axes.scatter(time, share, s=110, color=color, zorder=2)
    found = row['metrics']['modes']['value']
    crowded = any(time < x < 8 * time and abs(share - y) < 25 for x, y in zip(times, shares))
    if crowded:  # a label on its right would cover the next dot
      place = dict(xytext=(0, -10), ha='center', va='top')
    else:
      place = (dict(xytext=(12, 0), ha='left', va='center') if time <= middle else
               dict(xytext=(-12, 0), ha='right', va='center'))
    axes.annotate(f'{row["title"]}\n{cost(row)}\n{found} of 25 modes', (time, share), textcoords='offset points',
                  fontsize=10, color=color, **place)
  axes.set_xscale('log')
  axes.margins(x=0.15)
  real = rows[0]['metrics']['in_mode'].get('of_reference')
  if real is not None:
    axes.axhline(100 * real, color=REAL, linestyle='--', linewidth=1)
    axes.text(0.01, 100 * real + 1, 'real data', transform=axes.get_yaxis_transform(), fontsize=10, color=REAL)
  axes.xaxis.set_major_formatter('{x:,.4g}')
  axes.set(ylim=(-8, 108), xlabel='milliseconds per 100 samples (log scale; left is faster)',
           ylabel='% of points near a mode (higher is better)')
  axes.set_title('25 Gaussians: quality, coverage and speed', fontsize=13, weight='bold')
  axes.grid(alpha=0.3)
  agg.draw()
  grids.save_png(folder / 'quality_speed.png', np.asarray(agg.buffer_rgba())[..., :3])


def stacked(workdir: str, folder: pathlib.Path) -> None:
  """Real and generated stacks, and the three digits of the first one that the classifier reads with confidence."""
  run = ddgan_jax.load(workdir)
  side, small, top = 3.1, 0.9, 0.6
  canvas = Canvas(WIDTH, top + side + 0.45)
  generated = image_output.generate(run, 36, 0)
  classifier = modes.load_classifier(sources.load_source(run.config.data))
  read = modes.classify(classifier.params, generated, classifier.num_classes, stacked=True)
  shown = int(np.argmax(read['certain']))  # 0 if there is none
  print(f'Sample {shown} is read as {read["mode"][shown]:03}; p >= 0.9: {bool(read["certain"][shown])}')
  for i, (title, images, color) in enumerate((
      ('Training data', real_images(run, 36)[0], REAL), (f'Samples: {method_name(run)}', generated, GENERATED))):
    x = 0.15 + i * (side + 0.2)
    canvas.text(x + side / 2, 0.2, title, size=11, weight='bold', color=color)
    canvas.panel(grids.make_grid(images), x, top, side, color)
  x = 2 * side + 0.7
  canvas.text(x + 1.0, 0.2, 'One sample, 3 digits', size=11, weight='bold', color=GENERATED)
  canvas.panel(generated[shown], x - 0.15, top + (side - small) / 2, small, GENERATED)
  for i, name in enumerate(('R', 'G', 'B')):
    y = top + i * (side - small) / 2
    canvas.arrow(x + small - 0.15, x + 1.1, y + small / 2)
    canvas.panel(generated[shown][..., i:i + 1], x + 1.1, y, small, GENERATED)
    canvas.text(x + small + 0.1, y + small / 2 - 0.28, name, size=11, weight='bold')
  canvas.text(WIDTH / 2, top + side + 0.12, 'A stack holds one digit in each colour channel: 1,000 modes.', size=10)
  grids.save_png(folder / 'stacked_digits.png', canvas.pixels())


FIGURES = {function.__name__: function for function in (
    samples, denoising, conditional, emoji, gaussians25, quality, stacked)}


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('figure', choices=FIGURES)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path(__file__).parent)
  arguments = parser.parse_args(argv)
  compilation.use_persistent_cache()
  FIGURES[arguments.figure](arguments.workdir, arguments.folder)


if __name__ == '__main__':
  main()
