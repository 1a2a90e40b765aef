"""What cannot work in a configuration: one sentence for each that names the field.

The bounds and choices of single fields are in `schema`, with the fields; what fields cannot be together is here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ddgan_jax.config.errors import ConfigError

if typing.TYPE_CHECKING:
  from ddgan_jax.config.schema import Config, DiscriminatorConfig, GeneratorConfig

# The value of data.name that gives points instead of images.
POINTS = 'gaussians25'
# The values of data.name that read files at data.path; all others are names of TFDS.
FILE_SOURCES = ('folder', 'npz', 'zip', 'lmdb')

# What `metrics.evaluator` can measure.
METRICS = ('fid', 'is', 'kid', 'pr', 'dc', 'modes', 'label_accuracy')
MIN_SAMPLES = 10_000  # fewer bias a Fréchet distance upwards by more than papers differ

# The methods, each with what its G may predict and why nothing else. Everything else about a method is in `objectives`;
# this table is here because a config is checked when it is made, and imports run downward only.
PREDICTIONS = {
    'ddgan': (('x_0', 'noise', 'x_t'), ''),
    'gaussian': (('x_0', 'noise'), 'a Gaussian step needs the posterior'),
    'augmented_gan': (('x_0',), 'its one evaluation starts from pure noise and has to give the image'),
}

# Said once, in the section named, and carried into the networks.
_IMAGE_FIELDS = {'image_size': 'data', 'num_channels': 'data', 'stack': 'data'}
SHARED = {'generator': _IMAGE_FIELDS, 'discriminator': {**_IMAGE_FIELDS, 'num_classes': 'generator'}}


def choice(*choices: Any, default: Any = None) -> Any:
  """A dataclass field with these choices; the first is the default unless another is."""
  return dataclasses.field(default=choices[0] if default is None else default, metadata={'choices': choices})


def number(default: float, *, minimum: float, below: float | None = None) -> Any:
  """A dataclass field for a number of at least `minimum` and, unless that is None, below `below`."""
  return dataclasses.field(default=default, metadata={'minimum': minimum, 'below': below})


def check_fields(prefix: str, section: Any) -> None:
  """Raises ConfigError for the first field whose value is outside of its own bounds or choices."""
  for field in dataclasses.fields(section):
    name, value, limits = f'{prefix}{field.name}', getattr(section, field.name), field.metadata
    if 'choices' in limits:
      _check_choice(name, value, limits['choices'])
    elif 'minimum' in limits and limits['below'] is None:
      _check_minimum(name, value, limits['minimum'])
    elif 'minimum' in limits and not limits['minimum'] <= value < limits['below']:
      raise ConfigError(f'{name}: found {value}, must be in [{limits["minimum"]}, {limits["below"]})')


def _check_choice(name: str, value: Any, choices: tuple) -> None:
  if value not in choices:
    raise ConfigError(f'{name}: found {value!r}, must be one of {", ".join(map(repr, choices))}')


def _check_minimum(name: str, value: float, minimum: float) -> None:
  if value < minimum:
    raise ConfigError(f'{name}: found {value}, must be at least {minimum}')


def make_section(name: str, raw: Any, cls: type, carried: Mapping[str, Any]) -> Any:
  """The section `name` as a `cls`, with the fields `carried` over. Raises ConfigError for a field that cannot be."""
  if not isinstance(raw, Mapping):
    raise ConfigError(f'{name}: found {raw!r}, must be a section with fields')
  types = {k: v for k, v in typing.get_type_hints(cls).items() if k not in carried}
  for field in raw:
    if field in carried:
      raise ConfigError(f'{name}.{field}: is said once, as {SHARED[name][field]}.{field}')
  check_known(f'{name}.', raw, types)
  values = {field: convert(f'{name}.{field}', value, types[field]) for field, value in raw.items()}
  return cls(**values, **carried)


def check_known(prefix: str, raw: Mapping[str, Any], types: Mapping[str, Any]) -> None:
  """Raises ConfigError for the first field of `raw` that `types` lacks."""
  for field in raw:
    if field not in types:
      close = difflib.get_close_matches(field, types, n=1)
      hint = f'did you mean {prefix}{close[0]}?' if close else f'known here: {", ".join(types)}'
      raise ConfigError(f'{prefix}{field}: no such field; {hint}')


def convert(name: str, value: Any, kind: Any) -> Any:
  """`value` as `kind` (an integer will do for a float). Raises ConfigError if it is something else, or not finite."""
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f'{name}: found {value!r}, must be a tuple')
    return tuple(convert(name, item, typing.get_args(kind)[0]) for item in value)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(f'{name}: found {value!r} ({type(value).__name__}), must be {kind.__name__}')
  if kind is float and not math.isfinite(value):
    raise ConfigError(f'{name}: found {value!r}, must be finite')
  return value


def check_generator(g: GeneratorConfig) -> None:
  """Raises ConfigError for fields of the generator that cannot work together."""
  if g.stack > 1 and g.num_classes > 10:
    raise ConfigError(
        f'generator.num_classes: found {g.num_classes}, but with data.stack={g.stack} it is the classes of each image, '
        'a digit of the label 100a + 10b + c, and must be at most 10')
  if g.kind == 'mlp':
    if g.embedding_type != 'positional':
      raise ConfigError(
          f"generator.embedding_type: found {g.embedding_type!r}, but kind='mlp' embeds t as 'positional' does")
    if g.dropout:
      raise ConfigError(f"generator.dropout: found {g.dropout}, but kind='mlp' has none; use 0")
    return
  if g.num_channels_dae % 4:
    raise ConfigError(f'generator.num_channels_dae: found {g.num_channels_dae}, must be a multiple of 4')
  if not g.ch_mult or min(g.ch_mult) < 1:
    raise ConfigError(f'generator.ch_mult: found {g.ch_mult}, must be one positive multiple a level')
  factor = 2 ** (len(g.ch_mult) - 1)
  if g.image_size % factor:
    raise ConfigError(
        f'data.image_size: found {g.image_size}, but generator.ch_mult={g.ch_mult} halves the image '
        f'{len(g.ch_mult) - 1} times and needs a multiple of {factor}')
  for resolution in g.attn_resolutions:
    if resolution not in g.resolutions:
      raise ConfigError(
          f'generator.attn_resolutions: found {resolution}, which never occurs; image_size={g.image_size} '
          f'and ch_mult={g.ch_mult} give {", ".join(map(str, g.resolutions))}')
  if len(g.fir_kernel) < 2 or sum(g.fir_kernel) == 0:
    raise ConfigError(f'generator.fir_kernel: found {g.fir_kernel}, must have two or more taps that do not sum to 0')
  if g.progressive_combine == 'cat' and g.progressive_input != 'input_skip':
    raise ConfigError(
        "generator.progressive_combine: 'cat' joins the pyramid of progressive_input='input_skip', "
        f'but progressive_input is {g.progressive_input!r}')
  if g.embedding_type == 'fourier' and not g.conditional:
    raise ConfigError("generator.embedding_type: 'fourier' embeds t, but conditional=False gives no t to the blocks")


def check_discriminator(d: DiscriminatorConfig) -> None:
  """Raises ConfigError for fields of the discriminator that cannot work."""
  halvings = {'small': 3, 'large': 6, 'tiny': 1, 'mlp': 0}[d.kind]
  if d.image_size % 2**halvings:
    raise ConfigError(
        f'data.image_size: found {d.image_size}, but discriminator.kind={d.kind!r} halves the image '
        f'{halvings} times and needs a multiple of {2**halvings}')
  if d.t_emb_dim < 4 or d.t_emb_dim % 2:
    raise ConfigError(f'discriminator.t_emb_dim: found {d.t_emb_dim}, must be even and at least 4')


def _check_method(c: Config) -> None:
  _check_choice('method', c.method, tuple(PREDICTIONS))
  possible, why = PREDICTIONS[c.method]
  if c.generator.prediction not in possible:
    raise ConfigError(
        f'generator.prediction: found {c.generator.prediction!r}, but with method={c.method!r} it must be '
        f'{" or ".join(map(repr, possible))}: {why}')


def _check_points(c: Config) -> None:
  if not c.data.is_points:
    _check_choice('data.num_channels', c.data.num_channels, (1, 3))
    return
  for field, right in (('num_channels', 2), ('image_size', 1), ('stack', 1), ('flip', False), ('split', 'train')):
    found = getattr(c.data, field)
    if found != right:
      raise ConfigError(
          f'data.{field}: found {found!r}, but data.name={POINTS!r} gives points in the plane, as 1x1 images with two '
          f'channels; use {right!r}')


def check_run(c: Config) -> None:
  """Raises ConfigError for fields of a whole run that cannot work together."""
  _check_method(c)
  _check_points(c)
  if c.data.name in FILE_SOURCES and not c.data.path:
    raise ConfigError(f'data.path: is empty, must be the {c.data.name} to read, because data.name={c.data.name!r}')
  if c.data.path and c.data.name not in FILE_SOURCES:
    raise ConfigError(
        f'data.path: found {c.data.path!r}, which data.name={c.data.name!r} does not read; use '
        '--config.data.name=folder (or zip, npz, lmdb)')
  if c.data.path and c.data.split != 'train':
    raise ConfigError(
        f'data.split: found {c.data.split!r}, but only TFDS sets have splits; set data.path to the files of that split')
  if c.data.num_stacks and c.data.stack != 3:
    raise ConfigError(f'data.num_stacks: found {c.data.num_stacks}, which needs data.stack=3')
  if c.data.stack == 3 and c.data.num_channels != 3:
    raise ConfigError(f'data.num_channels: found {c.data.num_channels}, but data.stack=3 makes 3 channels')
  if not 0 < c.diffusion.beta_min < c.diffusion.beta_max:
    raise ConfigError(
        f'diffusion.beta_min: found {c.diffusion.beta_min}, must be above 0 and below beta_max={c.diffusion.beta_max}')
  if c.diffusion.kind == 'geometric' and c.diffusion.beta_max >= 1:
    raise ConfigError(
        f"diffusion.beta_max: found {c.diffusion.beta_max}, but with kind='geometric' it is the last variance, "
        'which must be below 1')
  for section, other in (('generator', c.generator), ('discriminator', c.discriminator)):
    for field, source in SHARED[section].items():
      right = getattr(getattr(c, source), field)
      if getattr(other, field) != right:
        raise ConfigError(f'{section}.{field}: found {getattr(other, field)}, but {source}.{field} is {right}')
  group = c.discriminator.stddev_group
  if c.data.batch_size < 1 or c.data.batch_size % group:
    raise ConfigError(
        f'data.batch_size: found {c.data.batch_size}, must be a multiple of {group}, '
        'the rows that share one minibatch standard deviation (discriminator.stddev_group)')
  for field in ('lr_g', 'lr_d'):
    rate = getattr(c.optim, field)
    if rate <= 0 or rate < c.optim.lr_min:
      raise ConfigError(f'optim.{field}: found {rate}, must be positive and not below optim.lr_min={c.optim.lr_min}')
  for field in ('num_steps', 'log_every', 'sample_every', 'checkpoint_every', 'eval_every'):
    if getattr(c.train, field) % c.train.steps_per_call:
      raise ConfigError(f'train.{field}: found {getattr(c.train, field)}, must be a multiple of '
                        f'train.steps_per_call={c.train.steps_per_call}')
  check_metrics('eval.metrics', c.eval.metrics)
  if 'label_accuracy' in c.eval.metrics and not c.generator.num_classes:
    raise ConfigError("eval.metrics: found 'label_accuracy', which needs a run with labels; use a "
                      'generator.num_classes above 0')
  if c.data.is_points and c.eval.metrics != ('modes',) and c.train.eval_every:
    raise ConfigError(f'eval.metrics: found {c.eval.metrics}, but points have only the metric modes')
  check_num_samples('eval.num', c.eval.num, c.eval.force, 'eval.force=True')


def check_metrics(name: str, metrics: Sequence[str]) -> None:
  """Raises ConfigError unless `metrics` are one or more that can be measured."""
  for metric in metrics:
    _check_choice(name, metric, METRICS)
  if not metrics:
    raise ConfigError(f'{name}: is empty, must be some of {", ".join(METRICS)}')


def check_num_samples(name: str, num: int, force: bool, how: str) -> None:
  """Raises ConfigError for a number of samples that biases what is measured, unless it is forced."""
  _check_minimum(name, num, 2)
  if num < MIN_SAMPLES and not force:
    raise ConfigError(f'{name}: found {num:,}, and fewer than {MIN_SAMPLES:,} samples bias what is measured; '
                      f'{how} measures all the same')


def check_devices(config: Config, num_devices: int) -> None:
  """Raises ConfigError unless mesh and global batch split evenly over `num_devices`, in whole groups of stddev rows."""
  fsdp, accumulation, group = config.parallel.fsdp, config.parallel.accumulation, config.discriminator.stddev_group
  if num_devices % fsdp:
    raise ConfigError(f'parallel.fsdp: found {fsdp}, must divide the {num_devices} devices')
  unit = num_devices * accumulation * group
  if config.data.batch_size % unit:
    microbatches = f', times {accumulation} microbatches (parallel.accumulation)' if accumulation > 1 else ''
    raise ConfigError(
        f'data.batch_size: found {config.data.batch_size}, must be a multiple of {unit}: {num_devices} devices'
        f'{microbatches}, times the {group} rows that share one minibatch standard deviation '
        '(discriminator.stddev_group)')
