"""Class labels of G, D and the sampler, and their checks.

A label is an integer in 0 … num_classes - 1, or `NONE`. For a stack of three images it is 100a + 10b + c, whose digits
are the classes of the images; each digit has its own embedding table, since a short run sees few of the 1,000 labels.
"""

from __future__ import annotations

import re
import typing

import jax
import numpy as np

from ddgan_jax.config import Config, ConfigError, GeneratorConfig

if typing.TYPE_CHECKING:
  from ddgan_jax.data.sources import Source

NONE = -1  # no label, or a dropped label
_STREAM = 0x6C61626C  # folded into an image's key, so that labels are independent of the noise of `sampling`


def digits(label, stack: int):
  """Splits labels […] into the class of each image, […, stack]; for NumPy and JAX arrays."""
  if stack == 1:
    return label[..., None]
  return label[..., None] // 10 ** np.arange(stack - 1, -1, -1, dtype=np.int32) % 10


def from_digits(classes):
  """Joins classes [n, stack] into labels [n]; the inverse of `digits`."""
  return classes @ 10 ** np.arange(classes.shape[-1] - 1, -1, -1, dtype=np.int32)


def all_labels(generator: GeneratorConfig) -> np.ndarray:
  """All labels of a conditional G in ascending order, [num_classes ** stack] int32."""
  classes = np.indices((generator.num_classes,) * generator.stack, np.int32)
  return from_digits(classes.reshape(generator.stack, -1).T)


def draw(seed: int, indices: jax.Array, generator: GeneratorConfig) -> jax.Array:
  """Draws uniform labels; that of image i is a function of (seed, i), independent of its noise in `sample_each`.

  Args:
    seed: 0 … 2**32 - 1.
    indices: [B] int32, the image indices.
    generator: the run's generator config.

  Returns:
    [B] int32.
  """

  def one(index):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), _STREAM)
    return jax.random.randint(key, (generator.stack,), 0, generator.num_classes)

  return from_digits(jax.vmap(one)(indices))


def grid_labels(generator: GeneratorConfig, num: int) -> tuple[np.ndarray, int | None]:
  """Labels [num] int32 for a grid with one row per class, and its number of columns.

  The remaining cells have no label or, if a label is required, the first labels again. If `num` is less than the number
  of labels, the labels are evenly spaced and the number of columns is None.
  """
  known = all_labels(generator)
  if num < len(known):
    return known[np.linspace(0, len(known) - 1, num).round().astype(int)], None
  columns = num // len(known)
  rest = known[:num % len(known)]
  return np.append(known.repeat(columns), rest if is_required(generator) else np.full_like(rest, NONE)), columns


def is_required(generator: GeneratorConfig) -> bool:
  """Whether sampling requires a label: the run was trained with `label_dropout=0`."""
  return generator.num_classes > 0 and not generator.label_dropout


def timing_label(generator: GeneratorConfig) -> int | None:
  """The label to use for timing: None, or 0 if a label is required."""
  return 0 if is_required(generator) else None


def check_label(
    label: int | np.ndarray | jax.Array | None, generator: GeneratorConfig, name: str = 'label', others: str = ''
) -> None:
  """Raises ConfigError for a label that a run cannot sample; tracers pass.

  Args:
    label: an integer or an array of integers; `NONE` or None is no label.
    generator: the run's generator config.
    name: name of the argument or flag, for the message.
    others: other values of the argument, for the message, such as `'all' or `.
  """
  known = f'0 … {generator.num_classes - 1}'
  if generator.stack > 1:
    known = f'100a + 10b + c with a, b and c in {known}'
  unlabelled = label is None or not isinstance(label, jax.core.Tracer) and (np.asarray(label) == NONE).any()
  if unlabelled and is_required(generator):
    raise ConfigError(f"{name} is {'none' if label is None else NONE}; use {others}a label, {known}, because the run "
                      'was trained with generator.label_dropout=0')
  if label is None:
    return
  if not generator.num_classes:
    value = 'an array' if isinstance(label, jax.core.Tracer) else label
    raise ConfigError(f'{name} is {value}; omit it, because the run was trained without labels '
                      '(generator.num_classes=0)')
  if isinstance(label, jax.core.Tracer):
    return
  label = np.asarray(label)
  if label.dtype.kind not in 'iu':
    raise ConfigError(f'{name} is {label}; use an integer or an array of integers')
  wrong = label[(label != NONE) & ~np.isin(label, all_labels(generator))]
  if wrong.size:
    raise ConfigError(f'{name} is {wrong.ravel()[0]}; use a label of this run, {known}')


def parse(text: str, generator: GeneratorConfig, name: str = '--label') -> np.ndarray | None:
  """Parses `3`, `3,1,4` or `all` into labels [k] int32, and `none` into None. Raises ConfigError otherwise."""
  if text == 'none':
    check_label(None, generator, name, others="'all' or ")
    return None
  if text != 'all' and not re.fullmatch(r'\d{1,9}(,\d{1,9})*', text):
    raise ConfigError(f"{name} is {text!r}; use a label such as 3, several such as 3,1,4, 'all' or 'none'")
  found = all_labels(generator) if text == 'all' else np.array(text.split(','), np.int32)
  check_label(found, generator, name)
  return found


def check_data(config: Config, source: Source) -> None:
  """Raises ConfigError unless the data of a conditional run have labels in 0 … generator.num_classes - 1."""
  found = config.generator.num_classes
  if not found:
    return
  if source.labels is None:
    raise ConfigError(f'generator.num_classes is {found}, but {source.name} has no labels; use 0')
  lowest, highest = int(np.min(source.labels)), int(np.max(source.labels))
  if lowest < 0:
    raise ConfigError(f'generator.num_classes is {found}, but some images of {source.name} have no label '
                      f'(their label is {lowest}); use 0')
  if highest >= found:
    raise ConfigError(f'generator.num_classes is {found}, but the largest label of {source.name} is {highest}; use '
                      f'{highest + 1}')
