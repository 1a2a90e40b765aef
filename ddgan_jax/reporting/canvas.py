"""A labelled picture: text, framed images or scatter plots, and arrows, placed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ddgan_jax.reporting.plotting import LIMIT

DPI = 100


class Canvas:
  """An empty white picture; places and sizes are in inches from its upper left corner.

  Args:
    width, height: of the picture, `DPI` pixels per inch.
  """

  def __init__(self, width: float, height: float):
    # Slow to import, as in `plotting`.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    self._figure = Figure(figsize=(width, height), dpi=DPI)
    self._canvas = FigureCanvasAgg(self._figure)
    self._width, self._height = width, height

  def text(self, x: float, y: float, text: str, **options: Any) -> None:
    """Text whose upper edge is at y, centred at x."""
    self._figure.text(x / self._width, 1 - y / self._height, text, **{'ha': 'center', 'va': 'top', **options})

  def panel(self, values: np.ndarray, x: float, y: float, side: float, color: str = '#888888') -> None:
    """An image [H, W, C] uint8, resized to fit a square, or points [n, 2] in a square; with a coloured frame."""
    height, width = (side, side) if values.ndim == 2 else side * np.array(values.shape[:2]) / max(values.shape[:2])
    left, top = x + (side - width) / 2, y + (side - height) / 2
    axes = self._figure.add_axes(
        (left / self._width, 1 - (top + height) / self._height, width / self._width, height / self._height))
    if values.ndim == 2:
      axes.scatter(*values.T, s=1.5, alpha=0.5, linewidths=0, color='black')
      axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT))
    else:
      image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
      pixels = round(width * DPI), round(height * DPI)
      axes.imshow(image.resize(pixels, Image.Resampling.BICUBIC), cmap='gray', vmin=0, vmax=255,
                  interpolation='nearest', aspect='auto')
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
      spine.set(color=color, linewidth=1.5)

  def arrow(self, x_from: float, x_to: float, y: float) -> None:
    """An arrow to the right."""
    from matplotlib.patches import FancyArrowPatch

    ends = [(x / self._width, 1 - y / self._height) for x in (x_from + 0.04, x_to - 0.04)]
    self._figure.add_artist(FancyArrowPatch(
        *ends, transform=self._figure.transFigure, arrowstyle='-|>', mutation_scale=9, shrinkA=0, shrinkB=0,
        color='black', linewidth=0.8))

  def pixels(self) -> np.ndarray:
    """The picture, [H, W, 3] uint8."""
    self._canvas.draw()
    return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
