"""Measures the quality of generated 8x8 digits, compared to held-out real digits.

  python benchmarks/digits_quality.py --samples samples.npz             # uint8 'images' [n, 8, 8, 1]
  python benchmarks/digits_quality.py --samples samples.npz --stack 3   # uint8 'images' [n, 8, 8, 3]

Real digits are those of scikit-learn; images with index % 6 == 5 are held out, the others are for training. Squared
distances are sums over the 64 pixels of a digit, scaled to [-1, 1]. The classifier is a support vector machine fitted
to the training part. None of these metrics is an FID.
"""

import argparse

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def real_digits():
  """((training images, labels), (held-out images, labels)); images are [n, 64] uint8."""
  images, labels = load_digits(return_X_y=True)
  images = np.round(images * 255 / 16).astype(np.uint8)
  held_out = np.arange(len(images)) % 6 == 5
  return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def to_float(images):
  """uint8 [n, 64] to float64 in [-1, 1]."""
  return images / 127.5 - 1


def fit_judge(images, labels):
  """A classifier of uint8 [n, 64] digits with probabilities."""
  judge = CalibratedClassifierCV(SVC(C=10.0, gamma='scale'), ensemble=False)
  return judge.fit(to_float(images), labels)


def nearest(images, reference):
  """Squared distance of each image to the nearest of `reference`; uint8 [n, 64] and [m, 64] to [n]."""
  a, b = to_float(images), to_float(reference)
  squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
  return np.maximum(squares, 0).min(1)


def frechet(images, reference):
  """Fréchet distance of two Gaussians fitted to the pixels: |m - m'|² + tr(C + C' - 2 (C C')^(1/2))."""
  a, b = to_float(images), to_float(reference)
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  values, vectors = np.linalg.eigh(cov_a)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
  return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


def kl_to_uniform(counts):
  """KL(histogram || uniform) in nats."""
  p = counts / counts.sum()
  return float((p[p > 0] * np.log(p[p > 0] * len(p))).sum())


def measure(images, train, held_out, judge, copy_threshold):
  """Metrics of uint8 digits [n, 64], as a dict in the order of the table."""
  probabilities = judge.predict_proba(to_float(images))
  counts = np.bincount(probabilities.argmax(1), minlength=10)
  distances = nearest(images, train)
  return {
      'n': len(images),
      'class histogram': ' '.join(map(str, counts)),
      'KL of classes to uniform': kl_to_uniform(counts),
      'mean probability of the class': probabilities.max(1).mean(),
      'read surely (probability > 0.9)': (probabilities.max(1) > 0.9).mean(),
      'distance to nearest training digit': distances.mean(),
      f'near copies (distance < {copy_threshold:.2f})': (distances < copy_threshold).mean(),
      f'Fréchet distance, pixels, first {min(len(images), len(held_out))}':
          frechet(images[:len(held_out)], train),
      'Fréchet distance, pixels, all': frechet(images, train),
      f'held-out digits to nearest of first {min(len(images), len(train))}':
          nearest(held_out, images[:len(train)]).mean(),
  }


def modes(stacks, judge):
  """Numbers of stacked digits, uint8 [n, 64, 3]: label 100a + 10b + c from the three channels."""
  digits = np.stack([judge.predict(to_float(stacks[..., c])) for c in range(3)])
  counts = np.bincount(digits[0] * 100 + digits[1] * 10 + digits[2], minlength=1000)
  found = int((counts > 0).sum())
  return {'n': len(stacks), 'modes found of 1000': found, 'KL of modes to uniform': kl_to_uniform(counts)}


def print_table(samples, real, real_name):
  """Prints two columns, generated and real; the first row is `n`."""
  row = '{:<44} {:>44} {:>40}'
  print(row.format('', 'samples', real_name))
  for (name, value), (_, other) in zip(samples.items(), real.items(), strict=True):
    print(row.format(name, *(f'{v:.4f}' if isinstance(v, float) else str(v) for v in (value, other))))
  print()


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--samples', required=True, help="npz with uint8 'images' [n, 8, 8, C]")
  parser.add_argument('--stack', type=int, default=1, choices=(1, 3), help='3 if every channel is a digit')
  args = parser.parse_args()
  with np.load(args.samples) as archive:
    images = archive['images']
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (8, 8, args.stack):
    parser.error(f'images is {images.dtype} {images.shape}; use uint8 [n, 8, 8, {args.stack}]')
  if len(images) < 2:
    parser.error(f'the number of images is {len(images)}; use at least 2')

  train, held_out = real_digits()
  judge = fit_judge(*train)
  copy_threshold = float(np.quantile(nearest(held_out[0], train[0]), 0.01))
  print(f'judge: {judge.score(to_float(held_out[0]), held_out[1]):.4f} right on n = {len(held_out[0])} held-out digits,'
        f' fitted to n = {len(train[0])}; near copies: below the 1% quantile of held-out digits')
  stacks = images.reshape(len(images), 64, args.stack)
  if args.stack == 3:
    chosen = np.random.default_rng(0).integers(len(held_out[0]), size=(len(images), 3))
    real_stacks = held_out[0][chosen].transpose(0, 2, 1)
    print_table(modes(stacks, judge), modes(real_stacks, judge), 'stacks of held-out digits')
  # Channel by channel, so that 'first n' rows are whole stacks.
  digits = stacks.transpose(0, 2, 1).reshape(-1, 64)
  real = measure(held_out[0], train[0], held_out[0], judge, copy_threshold)
  real[list(real)[-1]] = nearest(held_out[0], train[0]).mean()  # to the training digits, not to themselves
  print_table(measure(digits, train[0], held_out[0], judge, copy_threshold), real, 'held-out digits')


if __name__ == '__main__':
  main()
