"""Writes the folder of an exported run: weights, config, samples and model card."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

from etils import epath

import ddgan_jax
from ddgan_jax.cli import image_output, model_card
from ddgan_jax.config import exported
from ddgan_jax.interop import model_folder
from ddgan_jax.metrics import reports, statistics
from ddgan_jax.models import labels
from ddgan_jax.reporting import grids
from ddgan_jax.runs.workdir import grid_path

_NUM_POINTS = 2_000


def write(folder: str, run: ddgan_jax.Run, name: str, licence: str | None, sigma_rel: float | None) -> bool:
  """Writes the files of a repository on the Hub, without paths of this machine.

  Args:
    folder: an existing, empty folder.
    run: the run; its workdir has the reports of `ddgan evaluate` and the number of training images, if any.
    name: OWNER/NAME, for the card.
    licence: an identifier of the Hub, or None.
    sigma_rel: the relative length of the EMA; None for that of the training, which the run's sample grid shows.

  Returns:
    Whether the card has metrics.
  """
  is_run = not exported.is_exported(run.workdir)
  measured = reports.of_generator(run.workdir, run.step, statistics.digest(run.params)) if is_run else []
  run = dataclasses.replace(run, config=exported.without_paths(run.config))
  model_folder.write(folder, run.params, run.config, run.step)
  caption = _write_picture(os.path.join(folder, model_card.PICTURE), run, is_run and sigma_rel is None)
  card = model_card.make(run, name, licence, _num_images(run.workdir) if is_run else None, measured, caption,
                         sigma_rel)
  with open(os.path.join(folder, 'README.md'), 'w', encoding='utf-8') as file:
    file.write(card)
  return bool(measured)


def _write_picture(path: str, run: ddgan_jax.Run, has_grid: bool) -> str | None:
  """Copies the sample grid of the run's step, or draws one; returns its caption.

  A run with data.condition has none: its grids show training images, which may be private.
  """
  config, generator = run.config, run.config.generator
  if config.data.condition_shape:
    return None
  caption = 'Samples of the EMA generator, not selected'
  num = _NUM_POINTS if config.data.is_points else 64 if config.data.image_size <= 64 else 16
  grid = grid_path(run.workdir, run.step)
  if has_grid and os.path.isfile(grid):
    num = config.train.num_samples
    shutil.copyfile(grid, path)
    columns = labels.grid_labels(generator, num)[1] if generator.num_classes else None
  else:
    label, columns = labels.grid_labels(generator, num) if generator.num_classes else (None, None)
    images = image_output.generate(run, num, seed=0, label=label)
    title = f'{config.method}, T = {run.schedule.num_timesteps}, step {run.step:,}'
    grids.save_png(path, grids.make_picture(images, title, columns, config.data.value_range))
  if columns:
    caption += '; one row per class'
  if config.data.value_range:
    caption += f'; {grids.describe_values(config.data.num_channels, config.data.value_range)}'
  return f'{caption}.'


def _num_images(workdir: str) -> int | None:
  """The number of training images, from the run's data.json."""
  try:
    return int(json.loads((epath.Path(workdir) / 'data.json').read_text())['images'])
  except (OSError, ValueError, KeyError, TypeError):
    return None
