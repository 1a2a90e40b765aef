"""Bias and spread of FID, KID and MIND against the number of samples: `python benchmarks/metric_bias.py --out DIR`.

Two pairs of distributions: Gaussians with 2,048 dimensions, whose distances are known in closed form, and the
features that the classifier of digits has of stacked digits and of noisy copies, for which the value at the largest n
stands for the truth. As in practice, the reference has 50,000 samples (of which MIND uses n). Writes metric_bias.png
and prints a table: mean ± standard deviation over sets of n samples, divided by the true value.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources
from ddgan_jax.metrics import frechet, kid, mind, modes

SIZES = 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000
DIM = 2_048
METRICS = 'FID', 'KID', 'MIND'


class Gaussians:
  """N(0, S) and N(m, 1.2 S) with variances 1 / k, k = 1 … 2,048, and |m|² = 0.5."""

  name = f'Gaussians, D = {DIM:,}'

  def __init__(self):
    self.variances = 1 / np.arange(1, DIM + 1)
    self.mean = np.sqrt(0.5 * self.variances / self.variances.sum())
    self.scale = 1.2

  def draw(self, rng, count, fake):
    """[count, 2048] float32."""
    features = rng.standard_normal((count, DIM), np.float32) * np.float32(np.sqrt(self.variances))
    return features * np.float32(np.sqrt(self.scale)) + np.float32(self.mean) if fake else features

  def true_values(self):
    """FID by Dowson and Landau; KID by moments of Gaussians; MIND by the mean over directions of W2² in 1D."""
    s, m, c = self.variances, self.mean, self.scale
    distance = (m**2).sum() + s.sum() * (np.sqrt(c) - 1) ** 2

    def kernel(mean_a, scale_a, mean_b, scale_b):
      # E (x·y / D + 1)³, x ~ N(mean_a, scale_a S) and y ~ N(mean_b, scale_b S), with S diagonal.
      a, b = scale_a * s, scale_b * s
      mu = mean_a @ mean_b
      first = mu
      second = mu**2 + (a * b).sum() + (mean_b**2 * a).sum() + (mean_a**2 * b).sum()
      third = (mu**3 + 3 * mu * (mean_b**2 * a).sum()
               + 3 * (mu * ((a * b).sum() + (mean_a**2 * b).sum()) + 2 * (mean_b * a * b * mean_a).sum()))
      return 1 + 3 * first / DIM + 3 * second / DIM**2 + third / DIM**3

    zero = np.zeros(DIM)
    kernel_distance = kernel(zero, 1, zero, 1) + kernel(m, c, m, c) - 2 * kernel(zero, 1, m, c)
    directions = np.random.default_rng(9).standard_normal((20_000, DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    stds = np.sqrt((directions**2 * s).sum(1))
    sliced = np.mean((directions @ m) ** 2 + (stds * (np.sqrt(c) - 1)) ** 2)
    return dict(zip(METRICS, (distance, kernel_distance, 3 * DIM * sliced)))


class Digits:
  """Features of stacked digits, and of stacked digits with noise."""

  name = 'classifier features of stacked digits'

  def __init__(self):
    self.config = DataConfig(name='digits', image_size=8, num_channels=3, stack=3, flip=False, batch_size=1)
    self.source = sources.load_source(self.config)
    self.classifier = modes.load_classifier(self.source)
    self.apply = jax.jit(lambda images: modes.classify(
        self.classifier.params, images, self.classifier.num_classes, True)['features'])

  def draw(self, rng, count, fake):
    """[count, F] float32."""
    images = pipeline.stored_images(self.source, self.config, rng.integers(0, 2**30, count))
    if fake:
      images = np.clip(images + rng.normal(0, 12, images.shape), 0, 255).round().astype(np.uint8)
    return np.concatenate([np.asarray(self.apply(images[i:i + 500])) for i in range(0, count, 500)])


def measure(fake, real, moments, seed):
  """The three metrics of one set of samples."""
  own = frechet.Moments(fake.shape[1])
  own.add(fake)
  distance = frechet.frechet_distance(own.mean, own.covariance(), moments.mean, moments.covariance())
  return distance, kid.kernel_distance(real, fake, seed=seed)[0], mind.monge_distance(real, fake, seed=seed)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder of the figure')
  parser.add_argument('--repeats', type=int, default=8, help='sets of n samples; half as many from 10,000 on')
  parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
  args = parser.parse_args()
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.6), dpi=110, layout='constrained')
  panels = figure.subplots(1, 2)
  for axes, make in zip(panels, (Gaussians, Digits)):
    distribution = make()
    rng = np.random.default_rng(100)
    real = distribution.draw(rng, 50_000, fake=False)
    moments = frechet.Moments(real.shape[1])
    moments.add(real)
    found = {}
    for size in args.sizes:
      repeats = args.repeats if size < 10_000 else max(2, args.repeats // 2)
      found[size] = np.array([
          measure(distribution.draw(rng, size, fake=True), real, moments, seed) for seed in range(repeats)])
      print(f'{distribution.name}, n = {size:,}: {found[size].mean(0)} ± {found[size].std(0, ddof=1)}', flush=True)
    truth = (np.array([*distribution.true_values().values()]) if make is Gaussians else
             found[max(args.sizes)].mean(0))
    print(f'\n{distribution.name}; {"true values" if make is Gaussians else "values at the largest n"}: '
          f'{", ".join(f"{name} {value:.4g}" for name, value in zip(METRICS, truth))}\n')
    print(f'| n | {" | ".join(METRICS)} |\n|---|---|---|---|')
    for size, values in found.items():
      cells = [f'{mean:.3f} ± {std:.3f}' for mean, std in zip(
          values.mean(0) / truth, values.std(0, ddof=1) / truth)]
      print(f'| {size:,} | {" | ".join(cells)} |')
    print(flush=True)
    for i, name in enumerate(METRICS):
      mean, std = ([each[i] / truth[i] for each in stats] for stats in (
          [values.mean(0) for values in found.values()], [values.std(0, ddof=1) for values in found.values()]))
      axes.errorbar(np.array(list(found)) * (0.96 + 0.04 * i), mean, yerr=std, label=name, marker='o', capsize=3)
    axes.axhline(1, color='grey', linewidth=0.8)
    axes.set(xscale='log', xlabel='n, number of samples', title=distribution.name,
             ylabel='metric / true value' if make is Gaussians else 'metric / its value at the largest n')
    axes.grid(alpha=0.3)
    axes.legend()
  args.out.mkdir(parents=True, exist_ok=True)
  figure.savefig(args.out / 'metric_bias.png')


if __name__ == '__main__':
  main()
