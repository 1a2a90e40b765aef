"""Class labels of G, of D and of the sampler, and their checks.

A label is an integer in 0 … num_classes - 1, or `NONE`. Of a stack of three images it is 100a + 10b + c, and its digits
are their classes: three small tables instead of one of a thousand rows, most of which a short run would never see.
"""

from __future__ import annotations

import re
import typing

import jax
import numpy as np

from ddgan_jax.config import Config, ConfigError, GeneratorConfig

if typing.TYPE_CHECKING:
  from ddgan_jax.data.sources import Source

NONE = -1  # no label: the label of a row whose label is dropped
_STREAM = 0x6C61626C  # folded into an image's key, of which `sampling` takes the first parts for its noise


def digits(label, stack: int):
  """[…] labels → […, stack], the class of each image; for NumPy and JAX alike."""
  if stack == 1:
    return label[..., None]
  return label[..., None] // 10 ** np.arange(stack - 1, -1, -1, dtype=np.int32) % 10


def from_digits(classes):
  """The inverse of `digits`, [n, stack] → [n]."""
  return classes @ 10 ** np.arange(classes.shape[-1] - 1, -1, -1, dtype=np.int32)


def all_labels(generator: GeneratorConfig) -> np.ndarray:
  """All labels that a conditional G knows, [num_classes ** stack] int32, in order."""
  classes = np.indices((generator.num_classes,) * generator.stack, np.int32)
  return from_digits(classes.reshape(generator.stack, -1).T)


def draw(seed: int, indices: jax.Array, generator: GeneratorConfig) -> jax.Array:
  """The label of image i, uniform over all labels, a function of (seed, i).

  Args:
    seed: 0 … 2**32 - 1, as for `sampling.sample_each`, whose noise is independent of it.
    indices: [B] int32, which images.
    generator: whose labels.

  Returns:
    [B] int32.
  """

  def one(index):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), _STREAM)
    return jax.random.randint(key, (generator.stack,), 0, generator.num_classes)

  return from_digits(jax.vmap(one)(indices))


def grid_labels(generator: GeneratorConfig, num: int) -> tuple[np.ndarray, int | None]:
  """Labels for a grid of `num` images, one row a class, and its columns.

  The remaining cells have no label, or the first labels again where one is required. Fewer images than labels show
  some of these, spread evenly; the columns are None then.
  """
  known = all_labels(generator)
  if num < len(known):
    return known[np.linspace(0, len(known) - 1, num).round().astype(int)], None
  columns = num // len(known)
  rest = known[:num % len(known)]
  return np.append(known.repeat(columns), rest if is_required(generator) else np.full_like(rest, NONE)), columns


def is_required(generator: GeneratorConfig) -> bool:
  """Whether sampling requires a label, because the run was trained with `label_dropout=0`."""
  return generator.num_classes > 0 and not generator.label_dropout


def timing_label(generator: GeneratorConfig) -> int | None:
  """The label to use for timing: none, or 0 where one is required."""
  return 0 if is_required(generator) else None


def check_label(
    label: int | np.ndarray | jax.Array | None, generator: GeneratorConfig, name: str = 'label', others: str = ''
) -> None:
  """Raises ConfigError, beginning with `name`, for a label that a run cannot sample; tracers pass.

  Args:
    label: one or an array; `NONE`, or None for all, is no label, which a run can do without unless one is required.
    generator: the run's.
    name: of the argument or flag.
    others: what else the argument takes, such as `'all' or `.
  """
  known = f'0 … {generator.num_classes - 1}'
  if generator.stack > 1:
    known = f'100a + 10b + c with a, b and c in {known}'
  unlabelled = label is None or not isinstance(label, jax.core.Tracer) and (np.asarray(label) == NONE).any()
  if unlabelled and is_required(generator):
    raise ConfigError(f"{name}: found {'none' if label is None else NONE}, but this run was trained with labels only "
                      f'(generator.label_dropout=0); use {others}a label: {known}')
  if label is None:
    return
  if not generator.num_classes:
    shown = '' if isinstance(label, jax.core.Tracer) else f'found {label}, but '
    raise ConfigError(f'{name}: {shown}this run was trained without labels (generator.num_classes=0); leave it out')
  if isinstance(label, jax.core.Tracer):
    return
  label = np.asarray(label)
  if label.dtype.kind not in 'iu':
    raise ConfigError(f'{name}: found {label}, must be an integer or an array of integers')
  wrong = label[(label != NONE) & ~np.isin(label, all_labels(generator))]
  if wrong.size:
    raise ConfigError(f'{name}: found {wrong.ravel()[0]}, but the labels of this run are {known}')


def parse(text: str, generator: GeneratorConfig, name: str = '--label') -> np.ndarray | None:
  """`3`, `3,1,4` or `all` as labels [k] int32, `none` as None. Raises ConfigError, beginning with `name`, otherwise."""
  if text == 'none':
    check_label(None, generator, name, others="'all' or ")
    return None
  if text != 'all' and not re.fullmatch(r'\d{1,9}(,\d{1,9})*', text):
    raise ConfigError(f"{name}: found {text!r}, must be a label such as 3, some of them as 3,1,4, 'all' or 'none'")
  found = all_labels(generator) if text == 'all' else np.array(text.split(','), np.int32)
  check_label(found, generator, name)
  return found


def check_data(config: Config, source: Source) -> None:
  """Raises ConfigError unless a conditional run's data have the labels that `generator.num_classes` promises."""
  found = config.generator.num_classes
  if not found:
    return
  if source.labels is None:
    raise ConfigError(f'generator.num_classes: found {found}, but {source.name} has no labels; use 0')
  lowest, highest = int(np.min(source.labels)), int(np.max(source.labels))
  if lowest < 0:
    raise ConfigError(f'generator.num_classes: found {found}, but some images of {source.name} have no label '
                      f'({lowest} in its place); use 0')
  if highest >= found:
    raise ConfigError(f'generator.num_classes: found {found}, but the labels of {source.name} go to {highest}; use '
                      f'{highest + 1}')
