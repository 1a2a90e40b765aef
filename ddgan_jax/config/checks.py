"""Checks of a configuration; each error is one sentence that names the field, what was found and what to use.

Bounds and choices of single fields are declared with the fields in `schema`; conflicts between fields are found here.
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
  from ddgan_jax.config.schema import Config, DataConfig, DiscriminatorConfig, GeneratorConfig

# The value of data.name for points instead of images.
POINTS = 'gaussians25'
# Values of data.name that read files at data.path; all others are TFDS names.
FILE_SOURCES = ('folder', 'npz', 'zip', 'lmdb')

# Transformations of `objectives.augmentation`.
AUGMENTATIONS = ('color', 'translation', 'cutout')

MAX_CHANNELS = 16  # of data with a range of values

# Values of data.condition; `lowres` is followed by a factor, as in `lowres:4`.
CONDITIONS = ('none', 'lowres', 'grey', 'mask', 'edges', 'pairs')

# Metrics of `metrics.evaluator`.
METRICS = (
    'fid', 'is', 'kid', 'pr', 'dc', 'modes', 'label_accuracy', 'fid_clean', 'mind', 'fd_dinov2', 'pr_dinov2',
    'dc_dinov2', 'mind_dinov2', 'authenticity_dinov2', 'authenticity_inception', 'authenticity_vgg16',
    'authenticity_classifier')
STATISTICS_METRICS = ('fid', 'fid_clean', 'fd_dinov2')  # whose reference may be a file of statistics
CONDITION_METRICS = ('psnr', 'ssim', 'diversity', 'consistency')  # of `ddgan evaluate`, for runs with data.condition
MIN_SAMPLES = 10_000  # with fewer, the upward bias of a Fréchet distance exceeds the differences between papers

# Method → (what its G may predict, why nothing else). All else about a method is in `objectives`, which this module may
# not import: imports run downward only, and a config is checked when it is made.
PREDICTIONS = {
    'ddgan': (('x_0', 'noise', 'x_t'), ''),
    'gaussian': (('x_0', 'noise'), 'a Gaussian step needs the posterior'),
    'augmented_gan': (('x_0',), 'its one evaluation maps pure noise to the image'),
    'relativistic': (('x_0', 'noise', 'x_t'), ''),
    'rduot': (('x_0', 'noise'), 'the cost is that of the predicted x_0'),
    'ufogen': (('x_0', 'noise'), 'the regression is on the predicted x_0'),
    'siddm': (('x_0', 'noise'), 'the posterior needs the predicted x_0'),
}
# Fields of `objective` → the methods that use them.
_USED_BY = {
    'cost_weight': ('rduot',), 'psi': ('rduot',), 'regression_weight': ('ufogen', 'siddm'),
    # Of `gaussian` and `augmented_gan`, x_0_pred is not a prediction of the real image for a D.
    **dict.fromkeys(('reconstruction_weight', 'reconstruction_schedule'),
                    ('ddgan', 'relativistic', 'rduot', 'ufogen', 'siddm'))}

# Fields that are set in one section and copied from there into the networks.
_IMAGE_FIELDS = dict.fromkeys(('image_size', 'num_channels', 'stack', 'transform', 'condition_channels'), 'data')
SHARED = {'generator': _IMAGE_FIELDS, 'discriminator': {**_IMAGE_FIELDS, 'num_classes': 'generator'}}


def choice(*choices: Any, default: Any = None) -> Any:
  """A dataclass field with these choices; the first is the default unless `default` is given."""
  return dataclasses.field(default=choices[0] if default is None else default, metadata={'choices': choices})


def number(default: float, *, minimum: float, below: float | None = None) -> Any:
  """A dataclass field for a number ≥ `minimum` and, if `below` is given, < `below`."""
  return dataclasses.field(default=default, metadata={'minimum': minimum, 'below': below})


def check_fields(prefix: str, section: Any) -> None:
  """Raises ConfigError for the first field whose value is outside its bounds or choices."""
  for field in dataclasses.fields(section):
    name, value, limits = f'{prefix}{field.name}', getattr(section, field.name), field.metadata
    if 'choices' in limits:
      _check_choice(name, value, limits['choices'])
    elif 'minimum' in limits and limits['below'] is None:
      _check_minimum(name, value, limits['minimum'])
    elif 'minimum' in limits and not limits['minimum'] <= value < limits['below']:
      raise ConfigError(f'{name} is {value}; use a value in [{limits["minimum"]}, {limits["below"]})')


def _check_choice(name: str, value: Any, choices: tuple) -> None:
  if value not in choices:
    raise ConfigError(f'{name} is {value!r}; use one of {", ".join(map(repr, choices))}')


def _check_minimum(name: str, value: float, minimum: float) -> None:
  if value < minimum:
    raise ConfigError(f'{name} is {value}; use at least {minimum}')


def make_section(name: str, raw: Any, cls: type, carried: Mapping[str, Any]) -> Any:
  """Makes the section `name` as a `cls`, with the fields of `carried` added. Raises ConfigError for a wrong field."""
  if not isinstance(raw, Mapping):
    raise ConfigError(f'{name} is {raw!r}; use a section with fields')
  types = {k: v for k, v in typing.get_type_hints(cls).items() if k not in carried}
  for field in raw:
    if field in carried:
      source = 'data.condition' if field == 'condition_channels' else f'{SHARED[name][field]}.{field}'
      raise ConfigError(f'{name}.{field} is set by {source}; use that field')
  check_known(f'{name}.', raw, types)
  values = {field: convert(f'{name}.{field}', value, types[field]) for field, value in raw.items()}
  return cls(**values, **carried)


def check_known(prefix: str, raw: Mapping[str, Any], types: Mapping[str, Any]) -> None:
  """Raises ConfigError for the first field of `raw` that `types` lacks."""
  for field in raw:
    if field not in types:
      close = difflib.get_close_matches(field, types, n=1)
      hint = f'did you mean {prefix}{close[0]}?' if close else f'use one of {", ".join(types)}'
      raise ConfigError(f'{prefix}{field}: no such field; {hint}')


def convert(name: str, value: Any, kind: Any) -> Any:
  """Returns `value` as `kind`; an int becomes a float. Raises ConfigError for another type, NaN or infinity."""
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f'{name} is {value!r}; use a tuple')
    return tuple(convert(name, item, typing.get_args(kind)[0]) for item in value)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    article = 'an' if kind is int else 'a'
    raise ConfigError(f'{name} is {value!r} ({type(value).__name__}); use {article} {kind.__name__}')
  if kind is float and not math.isfinite(value):
    raise ConfigError(f'{name} is {value!r}; use a finite number')
  return value


def parse_condition(text: str) -> tuple[str, int]:
  """Splits `data.condition` into its kind and the factor of `lowres`, otherwise 1. Raises ConfigError."""
  kind, colon, factor = text.partition(':')
  known = kind in CONDITIONS and bool(colon) == (kind == 'lowres')
  if not known or (colon and not (factor.isdecimal() and int(factor) >= 2)):
    raise ConfigError(f"data.condition is {text!r}; use 'none', 'lowres:K' with an integer K of at least 2, 'grey', "
                      "'mask', 'edges' or 'pairs'")
  return kind, int(factor) if colon else 1


def check_values(d: DataConfig) -> None:
  """Raises ConfigError for ranges of values, and for fields that conflict with them."""
  for field, channels in (('value_range', 'num_channels'), ('pair_range', 'pair_channels')):
    found = getattr(d, field)
    if not found:
      if field == 'pair_range':
        _check_choice('data.pair_channels', d.pair_channels, (1, 3))
      continue
    if len(found) != 2 or found[0] >= found[1]:
      raise ConfigError(f'data.{field} is {found}; use two numbers, the lowest and the highest value')
    if d.name != 'npz':
      raise ConfigError(f"data.{field} is {found}; use it with data.name='npz', not {d.name!r}")
    if not 1 <= getattr(d, channels) <= MAX_CHANNELS:
      raise ConfigError(f'data.{channels} is {getattr(d, channels)}; use 1 … {MAX_CHANNELS} with data.{field}')
  if d.value_range:
    for field, right in (('stack', 1), ('resize', 'none'), ('skip_bad', False), ('cache', 'array')):
      if getattr(d, field) != right:
        raise ConfigError(f'data.{field} is {getattr(d, field)!r}; use {right!r} with data.value_range')


def check_condition(d: DataConfig) -> None:
  """Raises ConfigError for a condition that the data cannot have."""
  kind, factor = parse_condition(d.condition)
  if kind != 'pairs':
    for field, default in (('condition_path', ''), ('pair_size', 0), ('pair_channels', 3), ('pair_range', ())):
      if getattr(d, field) != default:
        raise ConfigError(f"data.{field} is {getattr(d, field)!r}; use it with data.condition='pairs'")
  if kind == 'none':
    return
  if d.is_points:
    raise ConfigError(f"data.condition is {d.condition!r}; use 'none' with data.name={POINTS!r}")
  if d.image_size % factor:
    raise ConfigError(f'data.condition is {d.condition!r}; use a factor that divides data.image_size={d.image_size}')
  if kind == 'grey' and d.num_channels != 3:
    raise ConfigError(f"data.condition is 'grey'; use it with data.num_channels=3, not {d.num_channels}")
  if kind == 'pairs':
    _check_pairs(d)


def _check_pairs(d: DataConfig) -> None:
  if d.name not in ('folder', 'zip', 'npz'):
    raise ConfigError(f"data.name is {d.name!r}; use 'folder', 'zip' or 'npz' with data.condition='pairs'")
  if not d.condition_path and d.name != 'npz':
    raise ConfigError("data.condition_path is empty; set it to the folder or zip of the conditions, because "
                      "data.condition='pairs'")
  for field, right in (('stack', 1), ('skip_bad', False)):
    if getattr(d, field) != right:
      raise ConfigError(f"data.{field} is {getattr(d, field)}; use {right} with data.condition='pairs'")
  if d.pair_size and d.image_size % d.pair_size:
    raise ConfigError(f'data.pair_size is {d.pair_size}; use a divisor of data.image_size={d.image_size}')


def check_generator(g: GeneratorConfig) -> None:
  """Raises ConfigError for fields of the generator that conflict."""
  if g.stack > 1 and g.num_classes > 10:
    raise ConfigError(
        f'generator.num_classes is {g.num_classes}; use at most 10 with data.stack={g.stack}, where each image is one '
        'digit of the label 100a + 10b + c')
  if g.kind == 'mlp':
    if g.transform != 'none':
      raise ConfigError(f"data.transform is {g.transform!r}; use 'none' with generator.kind='mlp'")
    if g.embedding_type != 'positional':
      raise ConfigError(
          f"generator.embedding_type is {g.embedding_type!r}; use 'positional' with generator.kind='mlp'")
    if g.dropout:
      raise ConfigError(f"generator.dropout is {g.dropout}; use 0 with generator.kind='mlp', which has no dropout")
    return
  if g.num_channels_dae % 4:
    raise ConfigError(f'generator.num_channels_dae is {g.num_channels_dae}; use a multiple of 4')
  if not g.ch_mult or min(g.ch_mult) < 1:
    raise ConfigError(f'generator.ch_mult is {g.ch_mult}; use one positive integer per level')
  halvings = len(g.ch_mult) - 1 + (g.transform == 'haar')
  if g.image_size % 2**halvings:
    haar = ' and data.transform=\'haar\'' if g.transform == 'haar' else ''
    raise ConfigError(
        f'data.image_size is {g.image_size}; use a multiple of {2**halvings}, because generator.ch_mult={g.ch_mult}'
        f'{haar} halve{"" if haar else "s"} the image {halvings} times')
  for resolution in g.attn_resolutions:
    if resolution not in g.resolutions:
      raise ConfigError(
          f'generator.attn_resolutions contains {resolution}; use some of {", ".join(map(str, g.resolutions))}, the '
          f'resolutions of data.image_size={g.image_size} with ch_mult={g.ch_mult}')
  if len(g.fir_kernel) < 2 or sum(g.fir_kernel) == 0:
    raise ConfigError(f'generator.fir_kernel is {g.fir_kernel}; use two or more taps whose sum is not 0')
  if g.progressive_combine == 'cat' and g.progressive_input != 'input_skip':
    raise ConfigError(
        f"generator.progressive_combine is 'cat' and progressive_input is {g.progressive_input!r}; use 'input_skip'")
  if g.embedding_type == 'fourier' and not g.conditional:
    raise ConfigError("generator.embedding_type is 'fourier'; use it with generator.conditional=True")


def check_discriminator(d: DiscriminatorConfig) -> None:
  """Raises ConfigError for fields of the discriminator that conflict."""
  halvings = {'small': 3, 'large': 6, 'tiny': 1, 'mlp': 0}[d.kind] + (d.transform == 'haar')
  if d.image_size % 2**halvings:
    haar = ' and data.transform=\'haar\'' if d.transform == 'haar' else ''
    raise ConfigError(
        f'data.image_size is {d.image_size}; use a multiple of {2**halvings}, because discriminator.kind={d.kind!r}'
        f'{haar} halve{"" if haar else "s"} the image {halvings} times')
  if d.t_emb_dim < 4 or d.t_emb_dim % 2:
    raise ConfigError(f'discriminator.t_emb_dim is {d.t_emb_dim}; use an even number of at least 4')
  for name in d.augment:
    _check_choice('discriminator.augment', name, AUGMENTATIONS)
  if 'translation' in d.augment and d.image_size < 8:
    raise ConfigError(f'discriminator.augment contains translation; use it with images of 8 pixels and more, not '
                      f'{d.image_size}')


def _check_method(c: Config) -> None:
  _check_choice('method', c.method, tuple(PREDICTIONS))
  possible, why = PREDICTIONS[c.method]
  if c.generator.prediction not in possible:
    raise ConfigError(
        f'generator.prediction is {c.generator.prediction!r}; use {" or ".join(map(repr, possible))} with '
        f'method={c.method!r}: {why}')
  for field in dataclasses.fields(c.objective):
    value, methods = getattr(c.objective, field.name), _USED_BY[field.name]
    if value != field.default and not is_used(field.name, c.method):
      raise ConfigError(
          f'objective.{field.name} is {value!r}; use it with method={" or ".join(map(repr, methods))}, or leave it at '
          f'{field.default!r} with method={c.method!r}')
  if c.method == 'relativistic' and c.optim.lazy_reg != 1:
    raise ConfigError(f"optim.lazy_reg is {c.optim.lazy_reg}; use 1 with method='relativistic', whose penalties are in "
                      'every step')
  if c.objective.reconstruction_schedule != 'constant' and not c.objective.reconstruction_weight:
    raise ConfigError(f'objective.reconstruction_schedule is {c.objective.reconstruction_schedule!r}; set '
                      'objective.reconstruction_weight above 0')
  if c.objective.reconstruction_weight and c.generator.prediction == 'x_t':
    raise ConfigError(
        f"objective.reconstruction_weight is {c.objective.reconstruction_weight}; use 0 with "
        "generator.prediction='x_t', which does not predict x_0")


def is_used(objective_field: str, method: str) -> bool:
  """Whether a method uses a field of `objective`."""
  return method in _USED_BY[objective_field]


def _check_points(c: Config) -> None:
  if not c.data.is_points:
    if c.data.is_8_bit:
      _check_choice('data.num_channels', c.data.num_channels, (1, 3))
    elif c.train.eval_every:
      raise ConfigError(f'train.eval_every is {c.train.eval_every}; use 0 with data.value_range, because the metrics '
                        'of eval are for images of 8 bits')
    return
  if c.discriminator.augment:
    raise ConfigError(f'discriminator.augment is {c.discriminator.augment}; use () with data.name={POINTS!r}')
  for field, right in (('num_channels', 2), ('image_size', 1), ('stack', 1), ('flip', False), ('split', 'train'),
                       ('transform', 'none')):
    found = getattr(c.data, field)
    if found != right:
      raise ConfigError(
          f'data.{field} is {found!r}; use {right!r} with data.name={POINTS!r}, whose points are 1x1 images with two '
          'channels')


def check_run(c: Config) -> None:
  """Raises ConfigError for fields of different sections that conflict."""
  _check_method(c)
  _check_points(c)
  if c.data.name in FILE_SOURCES and not c.data.path:
    raise ConfigError(f'data.path is empty; set it to the {c.data.name} to read, because data.name={c.data.name!r}')
  if c.data.path and c.data.name not in FILE_SOURCES:
    raise ConfigError(
        f'data.path is {c.data.path!r}, which data.name={c.data.name!r} does not read; use --config.data.name=folder '
        '(or zip, npz, lmdb)')
  if c.data.path and c.data.split != 'train':
    raise ConfigError(
        f'data.split is {c.data.split!r}, but only TFDS sets have splits; set data.path to the files of that split')
  if c.data.num_stacks and c.data.stack != 3:
    raise ConfigError(f'data.num_stacks is {c.data.num_stacks}; use it with data.stack=3, or set it to 0')
  if c.data.stack == 3 and c.data.num_channels != 3:
    raise ConfigError(f'data.num_channels is {c.data.num_channels}; use 3 with data.stack=3')
  if not 0 < c.diffusion.beta_min < c.diffusion.beta_max:
    raise ConfigError(
        f'diffusion.beta_min is {c.diffusion.beta_min}; use a value above 0 and below beta_max={c.diffusion.beta_max}')
  if c.diffusion.kind == 'geometric' and c.diffusion.beta_max >= 1:
    raise ConfigError(
        f"diffusion.beta_max is {c.diffusion.beta_max}; use a value below 1 with kind='geometric' (the last variance)")
  for section, other in (('generator', c.generator), ('discriminator', c.discriminator)):
    for field, source in SHARED[section].items():
      right = getattr(getattr(c, source), field)
      if getattr(other, field) != right:
        raise ConfigError(f'{section}.{field} is {getattr(other, field)}; use {right}, as in {source}.{field}')
  if c.generator.condition_dropout and not c.data.condition_shape:
    raise ConfigError(f'generator.condition_dropout is {c.generator.condition_dropout}; use it with a data.condition')
  if 'color' in c.discriminator.augment and (c.data.condition_shape or c.data.value_range):
    other = 'condition' if c.data.condition_shape else 'value_range'
    raise ConfigError(f'discriminator.augment contains color; use translation or cutout with data.{other}, whose '
                      'channels may not be colours')
  group = c.discriminator.stddev_group
  if c.data.batch_size < 1 or c.data.batch_size % group:
    raise ConfigError(
        f'data.batch_size is {c.data.batch_size}; use a multiple of {group} (discriminator.stddev_group)')
  for field in ('lr_g', 'lr_d'):
    rate = getattr(c.optim, field)
    if rate <= 0 or rate < c.optim.lr_min:
      raise ConfigError(f'optim.{field} is {rate}; use a positive value, at least optim.lr_min={c.optim.lr_min}')
  for field in ('num_steps', 'log_every', 'sample_every', 'checkpoint_every', 'eval_every'):
    if getattr(c.train, field) % c.train.steps_per_call:
      raise ConfigError(f'train.{field} is {getattr(c.train, field)}; use a multiple of '
                        f'train.steps_per_call={c.train.steps_per_call}')
  for field in ('beta2_final', 'r1_gamma_final'):
    if -1 < getattr(c.optim, field) < 0:
      raise ConfigError(f'optim.{field} is {getattr(c.optim, field)}; use at least 0, or -1 for a constant value')
    first = field.removesuffix('_final')
    if getattr(c.optim, field) >= 0 and not getattr(c.optim, first):
      raise ConfigError(f'optim.{first} is 0 and {field} is {getattr(c.optim, field)}; set {first} above 0')
  check_metrics('eval.metrics', c.eval.metrics)
  if 'label_accuracy' in c.eval.metrics and not c.generator.num_classes:
    raise ConfigError("eval.metrics contains 'label_accuracy'; use it with a generator.num_classes above 0")
  if c.data.is_points and c.eval.metrics != ('modes',) and c.train.eval_every:
    raise ConfigError(f"eval.metrics is {c.eval.metrics}; use ('modes',), the only metric of points")
  check_num_samples('eval.num', c.eval.num, c.eval.force, 'eval.force=True')


def check_metrics(name: str, metrics: Sequence[str], known: Sequence[str] = METRICS) -> None:
  """Raises ConfigError unless `metrics` names at least one known metric and no unknown one."""
  for metric in metrics:
    _check_choice(name, metric, known)
  if not metrics:
    raise ConfigError(f'{name} is empty; use some of {", ".join(METRICS)}')


def check_num_samples(name: str, num: int, force: bool, how: str) -> None:
  """Raises ConfigError for fewer than `MIN_SAMPLES` samples, which bias the metrics, unless `force`."""
  _check_minimum(name, num, 2)
  if num < MIN_SAMPLES and not force:
    raise ConfigError(f'{name} is {num:,}; use at least {MIN_SAMPLES:,}, because fewer samples bias the metrics, or '
                      f'{how}')


def check_devices(config: Config, num_devices: int) -> None:
  """Raises ConfigError unless mesh and global batch split evenly over `num_devices`, in whole stddev groups."""
  fsdp, accumulation, group = config.parallel.fsdp, config.parallel.accumulation, config.discriminator.stddev_group
  if num_devices % fsdp:
    raise ConfigError(f'parallel.fsdp is {fsdp}; use a divisor of the number of devices, {num_devices}')
  unit = num_devices * accumulation * group
  if config.data.batch_size % unit:
    microbatches = f', times {accumulation} microbatches (parallel.accumulation)' if accumulation > 1 else ''
    raise ConfigError(
        f'data.batch_size is {config.data.batch_size}; use a multiple of {unit}: {num_devices} devices{microbatches}, '
        f'times {group} rows (discriminator.stddev_group)')
