"""Prepare data: `ddgan prepare --config cifar10 [--config.data.FIELD=VALUE …]`, or `python -m ddgan_jax.prepare`.

Downloads or reads the data of a config, checks every image, stores them as one array, and prints a summary. Training
does the same; this command does it beforehand, without an accelerator, and writes a preview. A repeated call is
instant; an interrupted one starts again (except for finished TFDS downloads).
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app, options


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; see `app.run`."""
  return app.run(_prepare, _define_flags, __doc__, argv, required=('config',))


def _define_flags(define: options.Definer) -> None:
  define.config()
  define.string(
      'preview', None, 'Output .png for a grid of 64 images as used in training; by default next to the array.')
  define.boolean('overwrite', False, 'Delete the prepared data and prepare them again.')


def _prepare(args: types.SimpleNamespace) -> None:
  config = config_lib.from_config_dict(args.config.fields)
  if not config.data.is_8_bit:
    raise config_lib.ConfigError(
        f'data.name is {config.data.name!r}{" with data.value_range" if config.data.value_range else ""}, which needs '
        'no preparation; use `ddgan train`')

  # Slow to import, so only after the config is checked.
  from ddgan_jax.data import pipeline, preparation, sources
  from ddgan_jax.reporting import grids

  data = config.data
  source = sources.load_source(data, overwrite=args.overwrite)
  height, width, channels = source.image_shape
  size = len(source) * height * width * channels / 2**20
  kept = 'decoded each time they are needed' if source.decodes else f'in {preparation.prepared_folder(data)}'
  print(preparation.printable(
      f'{source.name}: {len(source):,} images of {height}x{width}x{channels}, {size:,.1f} MiB as uint8, {kept}.'))
  if config.data.num_stacks:
    print(f'Stacked: {config.data.num_stacks:,} fixed triples.')
  print(preparation.printable(_histogram(source)))
  preview = args.preview or str(preparation.prepared_folder(data) / 'preview.png')
  grids.save_png(preview, grids.make_grid(pipeline.preview(source, config.data, config.seed)))
  print(preparation.printable(f'Preview: {preview}'))


def _histogram(source) -> str:
  """The number of images of each class, in one line."""
  if source.labels is None:
    return 'No labels.'
  values, counts = np.unique(source.labels, return_counts=True)
  order = np.argsort(-counts, kind='stable') if len(values) > 20 else np.arange(len(values))
  names = dict(enumerate(source.class_names or ()))  # TFDS uses -1 for an unknown label
  shown = [f'{names.get(values[k], values[k])} {counts[k]:,}' for k in order]
  if len(shown) > 20:
    shown = [*shown[:8], '…', *shown[-4:]]
  return f'{len(values):,} classes: {", ".join(shown)}'


if __name__ == '__main__':
  app.start(main)
