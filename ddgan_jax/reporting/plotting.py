"""Scatter plots of points in the plane."""

from __future__ import annotations

import numpy as np

LIMIT = 5.2  # of both axes; the outer modes are at 4


def draw(points: np.ndarray, title: str) -> np.ndarray:
  """Draws points; the title counts those outside the frame.

  Args:
    points: [n, 2].
    title: text above the plot.

  Returns:
    [600, 600, 3] uint8.
  """
  # Imported here because it is slow and few runs need it. Without pyplot there is no global state and no display.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  x, y = np.asarray(points, np.float64).T
  outside = np.count_nonzero(np.maximum(np.abs(x), np.abs(y)) > LIMIT)
  figure = Figure(figsize=(6, 6), dpi=100, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.scatter(x, y, s=3, alpha=0.5, linewidths=0)
  axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xlabel='x', ylabel='y', aspect='equal')
  axes.set_title(f'{title} ({outside:,} of {len(x):,} points outside)' if outside else title)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()
