"""The exact reverse distribution q(x_s | x_t) of a 1-D mixture of Gaussians, for small and large steps.

    python benchmarks/reverse_1d.py [--out benchmarks/reverse_1d.png]

Shows why large denoising steps need more than a Gaussian (paper, section 3.1 and its 1-D figure): plots the density on
a grid and the best-fitting Gaussian. Takes seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from ddgan_jax import diffusion

FINE = 1000  # time steps of the finest grid
# (s, t) in these steps, smallest step first; 0 to 250 is the first step of T = 4, 0 to 1000 that of T = 1.
PAIRS = ((249, 250), (200, 250), (100, 250), (0, 250), (0, 1000))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A 1-D mixture of Gaussians: weights, means and standard deviations, [K] each; the weights sum to 1."""

  weights: np.ndarray
  means: np.ndarray
  stds: np.ndarray

  def diffused(self, alpha_bar: float) -> Mixture:
    """q(x) at the level where x_0 has weight sqrt(alpha_bar), also a mixture."""
    return Mixture(
        self.weights, np.sqrt(alpha_bar) * self.means, np.sqrt(alpha_bar * self.stds**2 + 1 - alpha_bar))

  def density(self, x: np.ndarray) -> np.ndarray:
    """The density at x, [N] → [N]."""
    return gaussian(x[:, None], self.means, self.stds) @ self.weights


DATA = Mixture(np.array([0.5, 0.3, 0.2]), np.array([-0.9, 0.1, 0.95]), np.array([0.1, 0.06, 0.12]))


def gaussian(x: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float) -> np.ndarray:
  """The normal density at x."""
  return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def reverse_density(
    grid: np.ndarray, data: Mixture, x_t: float, alpha_bar_s: float, alpha_bar_t: float
) -> np.ndarray:
  """q(x_s | x_t) ∝ q(x_t | x_s) q(x_s) on a grid (paper, section 3.1).

  Args:
    grid: [N] float64, evenly spaced values of x_s, wide and fine enough to hold the density.
    data: q(x_0).
    x_t: the noisier value.
    alpha_bar_s, alpha_bar_t: the squared weight of x_0 in x_s and in x_t; alpha_bar_s > alpha_bar_t.

  Returns:
    [N] float64, which sums to 1 / (grid[1] - grid[0]).
  """
  alpha = alpha_bar_t / alpha_bar_s
  density = gaussian(x_t, np.sqrt(alpha) * grid, np.sqrt(1 - alpha)) * data.diffused(alpha_bar_s).density(grid)
  return density / (density.sum() * (grid[1] - grid[0]))


def gaussian_fit(grid: np.ndarray, density: np.ndarray) -> np.ndarray:
  """The Gaussian of the same mean and variance, which minimises KL(density, ·), on the grid: [N]."""
  mass = density / density.sum()
  mean = mass @ grid
  return gaussian(grid, mean, np.sqrt(mass @ (grid - mean) ** 2))


def total_variation(grid: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
  """Total variation distance, half the integral of |p - q|: 0 (equal) to 1 (disjoint)."""
  return float(0.5 * np.abs(p - q).sum() * (grid[1] - grid[0]))


def alpha_bar(step: int) -> float:
  """alpha_bar of the default schedule at `step` of `FINE`."""
  return float(np.prod(1 - diffusion.make_schedule(FINE).beta[:step + 1].astype(np.float64)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', default=str(pathlib.Path(__file__).with_suffix('.png')))
  out = parser.parse_args().out
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(3 * len(PAIRS), 3.2), dpi=80, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  for axes, (s, t) in zip(figure.subplots(1, len(PAIRS)), PAIRS, strict=True):
    x_t = conditioned_on(t)
    grid = np.linspace(-3, 3, 60_001)
    density = reverse_density(grid, DATA, x_t, alpha_bar(s), alpha_bar(t))
    fit = gaussian_fit(grid, density)
    distance = total_variation(grid, density, fit)
    print(f's = {s}/{FINE}, t = {t}/{FINE}, x_t = {x_t:.3f}: total variation {distance:.4f}')
    axes.plot(grid, density, label=r'$q(x_s \mid x_t)$')
    axes.plot(grid, fit, '--', label='Gaussian fit')
    inside = grid[density + fit > 1e-3 * density.max()]
    axes.set(xlim=(inside[0], inside[-1]), ylim=(0, None), xlabel='$x_s$', yticks=[],
             title=f's = {s / FINE:g}, t = {t / FINE:g}\ntotal variation {distance:.3f}')
  figure.axes[0].set_ylabel('density')
  figure.axes[0].legend(loc='upper left', fontsize=8)
  canvas.print_png(out)
  print(out)


def conditioned_on(t: int) -> float:
  """The median of q(x_t), where several modes of the data are likely."""
  grid = np.linspace(-5, 5, 100_001)
  cumulative = np.cumsum(DATA.diffused(alpha_bar(t)).density(grid))
  return float(grid[np.searchsorted(cumulative, 0.5 * cumulative[-1])])


if __name__ == '__main__':
  main()
