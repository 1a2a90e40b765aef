"""The methods of `compare`, its table and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddgan_jax import config as config_lib
from ddgan_jax import sampling
from ddgan_jax.config import Config, ConfigError, ObjectiveConfig, checks
from ddgan_jax.reporting import grids
from ddgan_jax.reporting.plotting import LIMIT

_QUALITY = ('fid', 'fid_clean', 'fd_dinov2', 'fd_classifier', 'in_mode', 'kid', 'mind', 'mind_dinov2')
_COVERAGE = ('modes', 'recall', 'coverage', 'recall_dinov2', 'coverage_dinov2')
_NAMES = {
    'fid': 'FID', 'fd_classifier': 'FD (classifier)', 'in_mode': 'fraction of points in a mode', 'kid': 'KID',
    'certain': 'fraction with p ≥ 0.9', 'precision': 'precision', 'modes': 'modes found',
    'modes_certain': 'modes found, p ≥ 0.9', 'mode_kl': 'KL to uniform', 'recall': 'recall',
    'coverage': 'coverage', 'fid_clean': 'FID (clean-fid)', 'fd_dinov2': 'FD-DINOv2',
    'precision_dinov2': 'precision (DINOv2)', 'recall_dinov2': 'recall (DINOv2)',
    'coverage_dinov2': 'coverage (DINOv2)', 'mind': 'MIND', 'mind_dinov2': 'MIND (DINOv2)'}


def _mean_r1(base: Config) -> float:
  """The weight of a penalty in every step that equals the recipe's lazy one on average."""
  return base.optim.r1_gamma / base.optim.lazy_reg


def _cost_weight(base: Config) -> float:
  """tau of `rduot`: the recipe's; its default is scaled by size and range to the cost of a CIFAR-10 image."""
  weight = base.objective.cost_weight
  if weight != ObjectiveConfig.cost_weight:
    return weight
  return weight * 32 * 32 * 3 / (math.prod(base.image_shape) * base.data.bound**2)


class Method(NamedTuple):
  """One training, and the numbers of steps in which it samples.

  Attributes:
    title: its name in the table.
    fields: config fields that define the method; a function computes the value from the recipe's config.
    num_timesteps: numbers of sampling steps; None is that of the training.
  """

  title: str
  fields: dict[str, Any]
  num_timesteps: tuple[int | None, ...] = (None,)


METHODS = {
    'gan': Method('one-shot GAN', {'diffusion.num_timesteps': 1}),
    'ddpm': Method(
        'Gaussian diffusion', {'method': 'gaussian', 'generator.prediction': 'noise', 'diffusion.num_timesteps': 1000},
        (1000, 4)),
    'ddgan_2': Method('DDGAN', {'diffusion.num_timesteps': 2}),
    'ddgan_4': Method('DDGAN', {'diffusion.num_timesteps': 4}),
    'ddgan_8': Method('DDGAN', {'diffusion.num_timesteps': 8}),
    'augmented_gan': Method('GAN on diffused images', {'method': 'augmented_gan', 'diffusion.num_timesteps': 4}),
    'no_latent': Method('DDGAN without z', {'diffusion.num_timesteps': 4, 'generator.nz': 0}),
    'relativistic': Method(
        'Relativistic (R3GAN losses)', {
            'method': 'relativistic', 'diffusion.num_timesteps': 4, 'optim.r1_gamma': _mean_r1, 'optim.lazy_reg': 1}),
    'rduot': Method('RDUOT', {
        'method': 'rduot', 'diffusion.num_timesteps': 4, 'objective.cost_weight': _cost_weight}),
    'ufogen': Method('UFOGen', {'method': 'ufogen', 'diffusion.num_timesteps': 4}, (4, 2, 1)),
    'siddm': Method('SIDDM', {'method': 'siddm', 'diffusion.num_timesteps': 4}, (4, 2, 1)),
    'haar': Method('DDGAN in Haar space', {
        'data.transform': 'haar', 'diffusion.num_timesteps': 4, 'objective.reconstruction_weight': 1.0}),
}


def method_config(base: Config, method: Method, num_steps: int) -> Config:
  """`base` with the fields of a method, for `num_steps`, without evaluation during training.

  The EMA averages over at most a tenth of the steps, because in a short run it would otherwise contain the initial
  weights. Fields of `base.objective` that the method does not use are reset to their defaults.

  Raises:
    ConfigError: the method cannot be combined with `base`.
  """
  nested = config_lib.to_dict(base)
  nested['objective'] = {
      name: value for name, value in nested['objective'].items()
      if checks.is_used(name, method.fields.get('method', 'ddgan'))}
  nested['method'] = 'ddgan'
  nested['optim']['ema_decay'] = min(nested['optim']['ema_decay'], max(0.0, 1 - 10 / num_steps))
  for name, value in {**method.fields, 'train.num_steps': num_steps, 'train.eval_every': 0}.items():
    section, _, field = name.rpartition('.')
    (nested[section] if section else nested)[field] = value(base) if callable(value) else value
  return config_lib.from_config_dict(nested)


def select_methods(names: Sequence[str] | None) -> list[str]:
  """The named methods, by default all. Raises ConfigError for an unknown name."""
  for name in names or ():
    if name not in METHODS:
      raise ConfigError(f'--methods contains {name!r}; use some of {", ".join(METHODS)}')
  return list(names or METHODS)


def check_metrics(config: Config) -> None:
  """Raises ConfigError unless one metric measures quality and one measures coverage."""
  for what, names in (('quality', ('fid', 'fid_clean', 'fd_dinov2', 'kid', 'mind', 'mind_dinov2', 'modes')),
                      ('coverage', ('modes', 'pr', 'dc', 'pr_dinov2', 'dc_dinov2'))):
    if not set(names) & set(config.eval.metrics):
      raise ConfigError(f'eval.metrics is {config.eval.metrics}; add {", ".join(names[:-1])} or {names[-1]} for '
                        f'{what}, for example --config.eval.metrics=fid,pr')


def sampler_name(row: dict[str, Any]) -> str:
  """The name of a sampler: its method and number of evaluations."""
  return f'{row["title"]}, {row["evaluations"]:,}'


def _first_measured(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
  """The first of `names` among the metrics of the reports."""
  return next(name for name in names if name in rows[0]['metrics'])


def table(rows: Sequence[dict[str, Any]], config: Config, num_steps: int) -> str:
  """A Markdown table: one line per sampler (rows of `measurement.measure`), below the conditions."""
  quality, n, seeds = _first_measured(_QUALITY, rows), rows[0]['n'], rows[0].get('seeds', 1)
  others = ('certain', 'precision', 'modes', 'modes_certain', 'mode_kl', 'recall', 'coverage', 'precision_dinov2',
            'recall_dinov2', 'coverage_dinov2')
  names = [quality] + [name for name in others if name in rows[0]['metrics']]
  out_of = {name: rows[0]['metrics'][name].get('out_of') for name in names}
  head = [f'{_NAMES[name]}{f" of {out_of[name]:,}" if out_of[name] else ""}' for name in names]
  lines = [
      f'{config.data.name}: {num_steps:,} steps, batch size {config.data.batch_size}, n = {n:,} samples'
      f'{" (fewer than 10,000: biased)" if rows[0]["biased"] else ""}'
      f'{f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""}; milliseconds are the median of one '
      'compiled call, minutes the training, with compilation.', '',
      f'| method | network evaluations | {" | ".join(head)} | milliseconds per 100 | minutes |',
      '|---' * (len(names) + 4) + '|']
  for row in rows:
    shown = [_shown(row['metrics'][name]) for name in names]
    minutes = '' if row.get('minutes') is None else f'{row["minutes"]:.1f}'
    time = 1e3 * row['seconds']
    lines.append(f'| {row["title"]} | {row["evaluations"]:,} | {" | ".join(shown)} | '
                 f'{f"{time:,.0f}" if time >= 100 else f"{time:.3g}"} | {minutes} |')
  of_data = [rows[0]['metrics'][name].get('of_reference') for name in names]
  if any(value is not None for value in of_data):
    shown = ['' if value is None else f'{value:,}' if isinstance(value, int) else f'{value:.4g}' for value in of_data]
    lines.append(f'| real data | | {" | ".join(shown)} | | |')
  return '\n'.join(lines)


def _shown(entry: dict[str, Any]) -> str:
  """A value of a metric, with its standard deviation over seeds if there is one."""
  value, std = entry['value'], entry.get('std')
  if std is None:
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'
  return f'{value:.4g} ± {std:.2g}'


def plot_quality(rows: Sequence[dict[str, Any]], path: str) -> None:
  """Plots quality against sampling time, coloured by coverage (the three corners of the trilemma), as PNG."""
  from matplotlib.figure import Figure

  quality, coverage_name = _first_measured(_QUALITY, rows), _first_measured(_COVERAGE, rows)
  figure = Figure(figsize=(8, 5), dpi=110, layout='constrained')
  axes = figure.add_subplot()
  values = [row['metrics'][quality]['value'] for row in rows]
  stds = [row['metrics'][quality].get('std', 0.0) for row in rows]
  times = [1e3 * row['seconds'] for row in rows]
  spread = [[abs(1e3 * row.get(end, row['seconds']) - x) for row, x in zip(rows, times)] for end in (
      'fastest', 'slowest')]
  coverage = [row['metrics'][coverage_name]['value'] for row in rows]
  axes.errorbar(times, values, yerr=stds, xerr=spread, fmt='none', ecolor='grey', elinewidth=1, capsize=3, zorder=1)
  points = axes.scatter(times, values, c=coverage, cmap='viridis', s=90, zorder=2)
  brackets = ' (in brackets: p ≥ 0.9)' if 'modes_certain' in rows[0]['metrics'] else ''
  figure.colorbar(points, label=_NAMES[coverage_name] + brackets)
  axes.set_xscale('log')
  if quality != 'in_mode' and min(values) > 0 and max(values) > 20 * min(values):
    axes.set_yscale('log')
  axes.margins(x=0.15, y=0.15)
  better = 'higher' if quality == 'in_mode' else 'lower'
  seeds = rows[0].get('seeds', 1)
  bars = f', {seeds} seeds (bars: ± standard deviation)' if seeds > 1 else ''
  axes.set(xlabel='milliseconds per 100 samples (bars: fastest to slowest)',
           ylabel=f'{_NAMES[quality]} ({better} is better)\nn = {rows[0]["n"]:,}{bars}',
           title='Method, network evaluations')
  axes.grid(alpha=0.3)
  middle = np.sqrt(min(times) * max(times))
  texts = []
  for i, row in enumerate(rows):
    side = {'xytext': (6, 6), 'ha': 'left'} if times[i] <= middle else {'xytext': (-6, 6), 'ha': 'right'}
    text = f'{sampler_name(row)}\n{_NAMES[coverage_name]}: {coverage[i]:,.4g}'
    if 'modes_certain' in row['metrics']:
      text += f' ({row["metrics"]["modes_certain"]["value"]:,})'
    texts.append(axes.annotate(
        text, (times[i], values[i]), textcoords='offset points',
        fontsize=8, **side))
  _separate_labels(figure, texts)
  figure.savefig(path, bbox_inches='tight')


def _separate_labels(figure: Any, texts: Sequence[Any]) -> None:
  """Moves each annotation up until it overlaps none below it; freezes the layout, which would follow them."""
  figure.draw_without_rendering()
  figure.set_layout_engine('none')
  placed = []
  for text in sorted(texts, key=lambda text: text.get_window_extent().y0):
    while any(text.get_window_extent().overlaps(other) for other in placed):
      x, y = text.xyann
      text.xyann = x, y + 2
    placed.append(text.get_window_extent())


def plot_samples(rows: Sequence[dict[str, Any]], path: str) -> None:
  """Plots samples as PNG, one row (or one scatter plot) per method."""
  from matplotlib.figure import Figure

  is_points = rows[0]['samples'].shape[1:] == (1, 1, 2)
  if is_points:
    columns = 4
    figure = Figure(figsize=(10, 2.7 * -(-len(rows) // columns)), dpi=100, layout='constrained')
    for i, row in enumerate(rows):
      axes = figure.add_subplot(-(-len(rows) // columns), columns, i + 1)
      x, y = np.asarray(row['samples'])[:, 0, 0].T
      axes.scatter(x, y, s=3, alpha=0.5, linewidths=0)
      axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect='equal', xticks=[], yticks=[])
      modes, in_mode = (row['metrics'][name]['value'] for name in ('modes', 'in_mode'))
      axes.set_title(f'{sampler_name(row)}\n{modes} modes, {in_mode:.0%} of points near one', fontsize=9)
  else:
    figure = Figure(figsize=(9, 0.75 * len(rows)), dpi=110, layout='constrained')
    for i, row in enumerate(rows):
      axes = figure.add_subplot(len(rows), 1, i + 1)
      images = np.asarray(row['samples'][:12])
      images = images if images.dtype == np.uint8 else np.asarray(sampling.to_uint8(images))
      strip = grids.make_grid(images, columns=len(images))
      axes.imshow(strip[..., 0] if strip.shape[-1] == 1 else strip, cmap='gray', vmin=0, vmax=255)
      axes.set(xticks=[], yticks=[])
      axes.set_ylabel(sampler_name(row), rotation=0, ha='right', va='center', fontsize=8)
  figure.savefig(path, bbox_inches='tight')  # tight, or long names are cut off
