"""Trains on digits with outliers, and counts the outliers among the samples: DDGAN beside RDUOT (arXiv 2311.17101).

    python benchmarks/outliers.py --workdir runs/outliers

5% of the training set are inverted digits (black on white). Each method has the recipe `digits`, the same budget and
`--seeds` seeds. A sample counts as an outlier if its nearest training image is an inverted digit; the table also has
the mean squared distance of the other samples to their nearest digit, and the KL of their classes to uniform, because
a model that draws worse digits or fewer classes could have fewer outliers too. The same command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

import ddgan_jax
from benchmarks import digits_quality
from ddgan_jax import config as config_lib
from ddgan_jax.cli import image_output
from ddgan_jax.compare import comparison, measurement
from ddgan_jax.config import recipes

METHODS = {'ddgan': {}, 'rduot': {'method': 'rduot', 'objective.cost_weight': comparison._cost_weight}}


def write_data(path: pathlib.Path, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Writes the training set as npz; returns its digits and its outliers, [n, 64] uint8."""
  (digits, _), _ = digits_quality.real_digits()
  count = round(share * len(digits) / (1 - share))
  outliers = 255 - digits[np.random.default_rng(0).choice(len(digits), count, replace=False)]
  np.savez(path, images=np.concatenate([digits, outliers]).reshape(-1, 8, 8, 1))
  return digits, outliers


def make_config(name: str, data: pathlib.Path, num_steps: int, seed: int) -> config_lib.Config:
  """The config of one run."""
  fields = recipes.load('digits')
  fields.data.update(name='npz', path=str(data))
  base = config_lib.from_config_dict(fields)
  method = comparison.Method(name, METHODS[name])
  return dataclasses.replace(comparison.method_config(base, method, num_steps), seed=seed)


def measure(images: np.ndarray, digits: np.ndarray, outliers: np.ndarray, judge) -> dict[str, float]:
  """Shares and distances of uint8 samples [n, 64]."""
  to_digits, to_outliers = digits_quality.nearest(images, digits), digits_quality.nearest(images, outliers)
  is_outlier = to_outliers < to_digits
  regular = images[~is_outlier]
  counts = np.bincount(judge.predict(digits_quality.to_float(regular)), minlength=10)
  return {'outliers': is_outlier.mean(), 'nn': to_digits[~is_outlier].mean(),
          'KL': digits_quality.kl_to_uniform(counts)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--share', type=float, default=0.05, help='share of outliers in the training set')
  parser.add_argument('--num_steps', type=int, default=4_000)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--num', type=int, default=10_000, help='samples per run')
  args = parser.parse_args()
  args.workdir.mkdir(parents=True, exist_ok=True)
  data = args.workdir.absolute() / f'digits_{args.share:g}_inverted.npz'
  digits, outliers = write_data(data, args.share)
  train, _ = digits_quality.real_digits()
  judge = digits_quality.fit_judge(*train)
  found = {name: [] for name in METHODS}
  for seed in range(args.seeds):
    for name, reports in found.items():
      folder = str(args.workdir / measurement.run_folder(name, seed))
      if not measurement.train(make_config(name, data, args.num_steps, seed), folder):
        return
      images = image_output.generate(ddgan_jax.load(folder), args.num, seed=0, batch_size=1_000)
      reports.append(measure(np.asarray(images).reshape(-1, 64), digits, outliers, judge))
  print(f'{len(digits):,} digits and {len(outliers)} inverted digits ({args.share:.0%}), {args.num_steps:,} steps, '
        f'n = {args.num:,} samples per run, mean (all runs) of {args.seeds} seeds\n')
  print('| method | share of outliers | distance of the others to the nearest digit | KL of their classes to uniform |')
  print('|---|---|---|---|')
  for name, reports in found.items():
    shown = []
    for metric, form in (('outliers', '.2%'), ('nn', '.2f'), ('KL', '.3f')):
      values = [report[metric] for report in reports]
      shown.append(f'{statistics.fmean(values):{form}} ({", ".join(f"{value:{form}}" for value in values)})')
    print(f'| {name} | {" | ".join(shown)} |')


if __name__ == '__main__':
  main()
