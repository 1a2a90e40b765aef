"""Points in the plane as a picture."""

from __future__ import annotations

import numpy as np

LIMIT = 5.2  # beyond the outer centres, at 4


def draw(points: np.ndarray, title: str) -> np.ndarray:
  """Draws points; those outside of the frame are counted in the title.

  Args:
    points: [n, 2].
    title: above the picture.

  Returns:
    [600, 600, 3] uint8.
  """
  # Slow to import, and only runs on points need it. Without pyplot there is no global state and no display.
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
