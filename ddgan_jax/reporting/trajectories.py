"""A sampler's steps as a picture: a strip from x_T to x_0, and an animation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from ddgan_jax.reporting import grids
from ddgan_jax.reporting.canvas import Canvas
from ddgan_jax.utils import files

_STRIP_LEVELS = 5  # of x_t in a strip: with a prediction between each two, nine columns
_MOST_FRAMES = 50
_PREDICTION, _NOISY = '#1f77b4', '#888888'  # colours of the frames


class Steps(NamedTuple):
  """What is drawn: the steps of B images, or of a cloud of B points.

  Attributes:
    x_t: [T+1, B, H, W, C] uint8, or [T+1, B, 1, 1, 2] float32 points; x_T first.
    predictions: [T, ...], what G returns for x_t[i], of the same kind.
    title: text above the picture.
    has_latent: whether G takes a z.
    predicts_x_t: whether G returns x_{t-1} itself instead of x_0.
    names: names of the B images, such as 'class 3'; by default none.
  """

  x_t: np.ndarray
  predictions: np.ndarray
  title: str
  has_latent: bool = True
  predicts_x_t: bool = False
  names: Sequence[str] = ()

  @property
  def num_timesteps(self) -> int:
    return len(self.predictions)

  @property
  def is_points(self) -> bool:
    return self.x_t.dtype != np.uint8

  def head(self, i: int) -> str:
    """The call of G that returned predictions[i]."""
    t = self.num_timesteps - i
    latent = ', z' if self.has_latent else ''
    return f'$G(x_{{{t}}}, t={t - 1}{latent})$'

  def explanation(self) -> str:
    if self.predicts_x_t:
      return f'G denoises $x_t$ to $x_{{t-1}}${", from a latent $z$" if self.has_latent else ""}.'
    inputs = '$x_t$ and a latent $z$' if self.has_latent else '$x_t$'
    if self.num_timesteps == 1:
      return f'G maps {inputs.replace("x_t", "x_1")} to the clean $x_0$, the sample.'
    return (f'G predicts the clean $x_0$ from {inputs}; '
            r'then $x_{t-1} \sim q(x_{t-1} \mid x_t, x_0)$, which adds noise back.')


def draw_strip(steps: Steps) -> np.ndarray:
  """A row for each image, or one row for a cloud of points: x_T, G(x_T, T-1, z), x_{T-1}, …, x_0 as [H', W', 3] uint8.

  With T > 4 only five x_t are drawn, and the heads show how many steps are between them.
  """
  levels = _spread(steps.num_timesteps, _STRIP_LEVELS - 1)
  rows = 1 if steps.is_points else steps.x_t.shape[1]
  large, small, gap = (1.15, 0.85, 0.22) if steps.is_points else (0.84, 0.7, 0.25)
  left, bottom = 0.85 if steps.names else 0.15, 0.4
  top = 0.95 if len(levels) > steps.num_timesteps else 1.1
  pitch, arrows = large + 0.1, len(levels) - 1
  width = left + large * (arrows + 1) + (small + 2 * gap) * arrows + 0.15
  width, left = (7.0, left + (7.0 - width) / 2) if width < 7.0 else (width, left)
  figure = Canvas(width, top + rows * pitch + bottom)
  figure.text(0.5 * width, 0.12, steps.title, size=11, weight='bold')
  x = left
  for place, i in enumerate(levels):
    last = place == arrows
    note = 'noise' if not place else 'sample' if last else ''
    figure.text(x + large / 2, 0.48, f'$x_{{{steps.num_timesteps - i}}}$', size=12)
    figure.text(x + large / 2, 0.71, note, size=9)
    for row in range(rows):
      figure.panel(_item(steps.x_t[i], row, steps), x, top + row * pitch, large, _NOISY)
    x += large
    if last:
      break
    figure.text(x + gap + small / 2, 0.5, steps.head(i), size=9)
    figure.text(x + gap + small / 2, 0.71, '' if steps.predicts_x_t else 'predicted $x_0$', size=8, color=_PREDICTION)
    skipped = levels[place + 1] - i
    for row in range(rows):
      center = top + row * pitch + large / 2
      figure.panel(_item(steps.predictions[i], row, steps), x + gap, center - small / 2, small, _PREDICTION)
      figure.arrow(x, x + gap, center)
      figure.arrow(x + gap + small, x + small + 2 * gap, center)
    if skipped > 1:
      figure.text(x + gap + small / 2, 0.88, f'first of {skipped:,} steps', size=8)
    x += small + 2 * gap
  for row, name in enumerate(steps.names):
    figure.text(left - 0.1, top + row * pitch + large / 2 - 0.09, name, size=10, ha='right')
  figure.text(0.5 * width, top + rows * pitch + 0.08, steps.explanation(), size=9)
  return figure.pixels()


def draw_frames(steps: Steps) -> list[np.ndarray]:
  """One picture [H', W', 3] uint8 for each x_t, beside what G predicts from it; at most 51 pictures."""
  side, margin, top = 3.0, 0.2, 0.8
  width, frames = 2 * side + 3 * margin, []
  for i in _spread(steps.num_timesteps, _MOST_FRAMES):
    last = i == steps.num_timesteps
    figure = Canvas(width, top + side + 0.45)
    figure.text(0.5 * width, 0.12, steps.title, size=11, weight='bold')
    note = ' (noise)' if not i else ' (samples)' if last else ''
    figure.text(margin + side / 2, 0.47, f'$x_{{{steps.num_timesteps - i}}}${note}', size=12)
    figure.panel(_all(steps.x_t[i], steps), margin, top, side, _NOISY)
    k = min(i, steps.num_timesteps - 1)
    figure.text(2 * margin + 1.5 * side, 0.47, steps.head(k), size=12)
    figure.panel(_all(steps.predictions[k], steps), 2 * margin + side, top, side, _PREDICTION)
    figure.text(0.5 * width, top + side + 0.12, steps.explanation(), size=9)
    frames.append(figure.pixels())
  return frames


def save_gif(path: str | os.PathLike, frames: Sequence[np.ndarray]) -> None:
  """Writes [H, W, 3] uint8 frames as an endless animation of at most seven seconds, 2.5 of them on the last frame."""
  first, *others = (Image.fromarray(frame).quantize(32, dither=Image.Dither.NONE) for frame in frames)
  duration = [min(900, max(60, 4000 // len(frames)))] * len(others) + [2500]
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path, 'wb') as file:
    first.save(file, format='GIF', save_all=True, append_images=others, duration=duration, loop=0)


def _spread(num_timesteps: int, most: int) -> list[int]:
  """0 … num_timesteps, thinned to `most` + 1 numbers."""
  return np.linspace(0, num_timesteps, min(num_timesteps, most) + 1).round().astype(int).tolist()


def _item(batch: np.ndarray, row: int, steps: Steps) -> np.ndarray:
  return batch.reshape(-1, 2) if steps.is_points else batch[row]


def _all(batch: np.ndarray, steps: Steps) -> np.ndarray:
  return batch.reshape(-1, 2) if steps.is_points else grids.make_grid(batch)
