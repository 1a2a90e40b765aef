"""Prepare data: `python -m ddgan_jax.prepare --config configs/cifar10.py [--config.data.FIELD=VALUE …]`.

Downloads or reads the data of a config, checks every image, keeps them as one array, and says what was found. Training
does the same by itself; this command does it before an accelerator is rented, and shows a preview. A second run is
instant, a killed one goes on where it was.
"""

from __future__ import annotations

import numpy as np
from absl import flags
from ml_collections import config_flags

from ddgan_jax import config as config_lib
from ddgan_jax.cli import app

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A recipe, such as configs/digits.py.', lock_config=True)
_PREVIEW = flags.DEFINE_string(
    'preview', None, 'Where to put a grid of 64 images, as training will see them; by default beside the array.')
_ANEW = flags.DEFINE_boolean('anew', False, 'Forget what has been prepared, and do it again.')


def main(argv: list[str]) -> None:
  del argv
  config = config_lib.from_config_dict(_CONFIG.value)
  if config.data.is_points:
    raise config_lib.ConfigError(
        f'data.name: found {config.data.name!r}, which is drawn at the start of a run; there is nothing to prepare')

  # After the config is checked: these take a second to import.
  from ddgan_jax.data import pipeline, preparation, sources
  from ddgan_jax.reporting import grids

  data = config.data
  source = sources.load_source(data, anew=_ANEW.value)
  height, width, channels = source.image_shape
  size = len(source) * height * width * channels / 2**20
  kept = 'decoded each time they are needed' if source.decodes else f'in {preparation.folder_of(data)}'
  print(preparation.printable(
      f'{source.name}: {len(source):,} images of {height}x{width}x{channels}, {size:,.1f} MiB as uint8, {kept}.'))
  if config.data.num_stacks:
    print(f'Stacked: {config.data.num_stacks:,} fixed triples.')
  print(preparation.printable(_histogram(source)))
  preview = _PREVIEW.value or str(preparation.folder_of(data) / 'preview.png')
  grids.save_png(preview, grids.make_grid(pipeline.preview(source, config.data, config.seed)))
  print(preparation.printable(f'Preview: {preview}'))


def _histogram(source) -> str:
  """How many images each class has, in one line."""
  if source.labels is None:
    return 'No labels.'
  values, counts = np.unique(source.labels, return_counts=True)
  order = np.argsort(-counts, kind='stable') if len(values) > 20 else np.arange(len(values))
  names = dict(enumerate(source.class_names or ()))  # TFDS gives -1 where a label is not known
  shown = [f'{names.get(values[k], values[k])} {counts[k]:,}' for k in order]
  if len(shown) > 20:
    shown = [*shown[:8], '…', *shown[-4:]]
  return f'{len(values):,} classes: {", ".join(shown)}'


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
