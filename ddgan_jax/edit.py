"""Edit with a run: `python -m ddgan_jax.edit --workdir runs/digits --image x.png --mask m.png --out edited.png`.

| `--task` | needs | what it does |
|---|---|---|
| `inpaint` | `--image`, `--mask` (white is filled in) | new pixels below the mask; all others are kept exactly |
| `stroke` | `--image` | makes an image of the data's kind from a crude picture: diffused to `--level`, denoised |
| `variations` | `--image` | the same from a lower level, for images that are of the data's kind already |
| `interpolate` | two of `--image`, `--image2`, or two numbers `--between` | `--num` frames from one to the other |
| `superres` | `--image`, smaller than the run's by a whole factor | images of full size with these block means |

Images of any mode and orientation are converted to the run's channels and fitted to its size by the run's
data.resize, or `--resize`. `--out x.png` writes one grid that begins with the input, `x.npz` uint8 `images` and
`inputs`, any other name a folder with one PNG each. Image i depends on the seed and i alone.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ddgan_jax
from ddgan_jax import sampling
from ddgan_jax.cli import app, image_output
from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import images as images_lib
from ddgan_jax.editing import interpolation, noise_optimization, replacement
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation

_MOST_TIMESTEPS = 16  # whose backward pass is short enough for --method match
# What each task needs, and what it takes beside that.
_TASKS = {
    'inpaint': (('image', 'mask'), ('method', 'num_steps', 'num_resamples')),
    'stroke': (('image',), ('level',)),
    'variations': (('image',), ('level',)),
    'interpolate': ((), ('image', 'image2', 'level', 'between')),
    'superres': (('image',), ('method', 'num_steps')),
}

_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
_TASK = flags.DEFINE_enum('task', 'inpaint', list(_TASKS), 'What to do.')
_IMAGE = flags.DEFINE_string('image', None, 'The picture to begin with.')
_IMAGE2 = flags.DEFINE_string('image2', None, 'The picture to interpolate to.')
_MASK = flags.DEFINE_string(
    'mask', None, "Where to inpaint: white is filled in, black is kept. Of the image file's size, or of the run's.")
_BETWEEN = flags.DEFINE_list(
    'between', ['0', '1'], 'Two samples to interpolate between: their numbers in the grid of ddgan_jax.sample with the '
    'same --seed, from 0.')
_OUT = flags.DEFINE_string('out', 'edited.png', 'Grid (.png), array (.npz), or folder of PNGs.')
_NUM = flags.DEFINE_integer('num', 8, 'How many results, or frames.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.', lower_bound=0, upper_bound=2**32 - 1)
_LEVEL = flags.DEFINE_integer(
    'level', None, 'How far the picture is diffused, from 1 (it stays) to T (hardly anything of it does); by default '
    'T / 2 for stroke and interpolate, T / 4 for variations, rounded up.')
_METHOD = flags.DEFINE_enum(
    'method', None, ['match', 'replace'], 'How inpaint and superres impose what is given: `match` fits the noise of '
    'the sampler to it, `replace` puts it into each x_t (RePaint, ILVR). By default `match` up to '
    f'T = {_MOST_TIMESTEPS}.')
_NUM_STEPS = flags.DEFINE_integer('num_steps', 100, 'Steps of Adam, with --method match.', lower_bound=1)
_NUM_RESAMPLES = flags.DEFINE_integer(
    'num_resamples', 10, 'Passes through each level, with --method replace, so that new and kept pixels can agree; 1 '
    'never goes back.', lower_bound=1)
_RESIZE = flags.DEFINE_enum(
    'resize', None, ['none', 'crop', 'cover', 'pad'], "How pictures are fitted; by default the run's data.resize.")
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 100, 'Images at a time; fewer take less memory.', lower_bound=1)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; by default the newest.')
_LABEL = flags.DEFINE_integer(
    'label', None, 'Class label of the results; required if the run was trained with generator.label_dropout=0.')


def main(argv: list[str]) -> None:
  del argv
  _check_flags()
  image_output.check_out(_OUT.value)
  config = ddgan_jax.load_config(_WORKDIR.value)
  if config.data.is_points:
    raise ConfigError(f'{_WORKDIR.value}: is a run on points, and only images can be edited')
  labels.check_asked(_LABEL.value, config.generator, '--label')
  compilation.use_persistent_cache()
  run = ddgan_jax.load(_WORKDIR.value, _STEP.value, label=_LABEL.value)
  make = {'inpaint': _inpaint, 'stroke': _image_to_image, 'variations': _image_to_image,
          'interpolate': _interpolate, 'superres': _super_resolve}[_TASK.value]
  results, inputs = make(run)
  image_output.save(_OUT.value, results, inputs=inputs)
  print(f'{_TASK.value}: {len(results)} images by step {run.step:,} of {_WORKDIR.value}, seed {_SEED.value}: '
        f'{_OUT.value}')


def _inpaint(run: ddgan_jax.Run) -> tuple[np.ndarray, np.ndarray]:
  """(results, inputs), [n, H, W, C] uint8 each, as of every task; here the inputs are the image and what is kept."""
  image = _read_image(_IMAGE, run.config.data)
  mask = _read_mask(run.config.data)
  by_matching, num_resamples = _by_matching(run), _NUM_RESAMPLES.value
  module, passes = (noise_optimization, _NUM_STEPS.value) if by_matching else (replacement, num_resamples)

  def edit(key):
    return module.inpaint(
        key, run.generator_fn, run.schedule, _to_float(image)[None], mask, run.config.generator.nz, passes)

  kept = np.where(mask, np.uint8(128), image)
  noise = run.schedule.num_timesteps * (1 if by_matching else 3 * num_resamples)
  return _from_keys(run, edit, noise), np.stack([image, kept])


def _image_to_image(run: ddgan_jax.Run) -> tuple[np.ndarray, np.ndarray]:
  level = _level(run, share=4 if _TASK.value == 'variations' else 2)
  image = _read_image(_IMAGE, run.config.data)[None]

  def edit(key):
    return replacement.image_to_image(
        key, run.generator_fn, run.schedule, _to_float(image), run.config.generator.nz, level)

  return _from_keys(run, edit, level), image


def _interpolate(run: ddgan_jax.Run) -> tuple[np.ndarray, np.ndarray]:
  nz, root = run.config.generator.nz, jax.random.key(_SEED.value)
  if _IMAGE.value:
    images = np.stack([_read_image(flag, run.config.data) for flag in (_IMAGE, _IMAGE2)])
    level = _level(run, share=2)
    frames = compilation.jit(lambda: interpolation.interpolate_images(
        root, run.generator_fn, run.schedule, _to_float(images), nz, level, _NUM.value))()
    return np.asarray(sampling.to_uint8(frames)), images
  key_a, key_b = (jax.random.fold_in(root, int(number)) for number in _BETWEEN.value)
  frames = compilation.jit(lambda: interpolation.interpolate(
      key_a, key_b, run.generator_fn, run.schedule, run.config.image_shape, nz, _NUM.value))()
  return np.asarray(sampling.to_uint8(frames)), np.zeros((0, *run.config.image_shape), np.uint8)


def _super_resolve(run: ddgan_jax.Run) -> tuple[np.ndarray, np.ndarray]:
  size = run.config.data.image_size
  height, width = _size(_IMAGE)
  if height != width or height >= size or size % height:
    raise ConfigError(f'--image: {_IMAGE.value} is {height}x{width}, must be square and smaller than the {size}x{size} '
                      'of the run by a whole factor')
  factor = size // height
  small = _read_image(_IMAGE, dataclasses.replace(run.config.data, image_size=height))[None]

  module, passes = (noise_optimization, (_NUM_STEPS.value,)) if _by_matching(run) else (replacement, ())

  def edit(key):
    return module.super_resolve(
        key, run.generator_fn, run.schedule, _to_float(small), run.config.generator.nz, factor, *passes)

  return _from_keys(run, edit, 2 * run.schedule.num_timesteps), np.asarray(replacement.enlarge(small, factor))


def _by_matching(run: ddgan_jax.Run) -> bool:
  """Whether --method is match, by default."""
  if _METHOD.value:
    return _METHOD.value == 'match'
  return not _NUM_RESAMPLES.present and run.schedule.num_timesteps <= _MOST_TIMESTEPS


def _from_keys(run: ddgan_jax.Run, edit: Callable[[jax.Array], jax.Array], noise: int) -> np.ndarray:
  """[num, H, W, C] uint8 of `edit`: key → [1, H, W, C]; `noise` is how many images of noise it draws."""
  most = sampling.most_at_once(noise, run.config.image_shape, run.config.generator.nz)
  batch_size = min(_BATCH_SIZE.value, _NUM.value, most)

  @compilation.jit
  def edit_batch(first):
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(_SEED.value)))(first + jnp.arange(batch_size))
    return sampling.to_uint8(jax.vmap(edit)(keys)[:, 0])

  return np.concatenate([np.asarray(edit_batch(first)) for first in range(0, _NUM.value, batch_size)])[:_NUM.value]


def _check_flags() -> None:
  """Raises ConfigError for flags that do not go together, before anything slow starts."""
  task = _TASK.value
  needed, taken = _TASKS[task]
  for name in ('image', 'image2', 'mask', 'between', 'level', 'method', 'num_steps', 'num_resamples'):
    flag = flags.FLAGS[name]
    if flag.present and name not in needed + taken:
      tasks = [t for t, both in _TASKS.items() if name in both[0] + both[1]]
      raise ConfigError(f'--{name}: is for --task {" or ".join(tasks)}, found --task {task}')
    if name in needed and not flag.value:
      raise ConfigError(f'--{name}: missing, --task {task} needs {" and ".join("--" + n for n in needed)}')
    if name in ('image', 'image2', 'mask') and flag.value and not os.path.isfile(flag.value):
      raise ConfigError(f'--{name}: no such file {flag.value!r}')
  if _NUM_RESAMPLES.present and (_METHOD.value == 'match' or _NUM_STEPS.present):
    raise ConfigError('--num_resamples: is for --method replace, which --method match and --num_steps are not')
  if _NUM_STEPS.present and _METHOD.value == 'replace':
    raise ConfigError('--num_steps: is for --method match, found --method replace')
  if task == 'interpolate':
    if bool(_IMAGE.value) != bool(_IMAGE2.value):
      raise ConfigError('--image and --image2: give both, or neither to interpolate between samples')
    if _IMAGE.value and _BETWEEN.present:
      raise ConfigError('--between: numbers samples, so it does not go with --image')
    if _LEVEL.value is not None and not _IMAGE.value:
      raise ConfigError('--level: is for --image and --image2; samples are interpolated from the noise on')
    if len(_BETWEEN.value) != 2 or not all(number.isdecimal() and int(number) < 2**32 for number in _BETWEEN.value):
      raise ConfigError(f'--between: found {",".join(_BETWEEN.value)!r}, must be two numbers from 0, such as 0,1')
    if _NUM.value < 2:
      raise ConfigError(f'--num: found {_NUM.value}, an interpolation has at least 2 frames')


def _level(run: ddgan_jax.Run, share: int) -> int:
  """The level asked for, or by default T / share, rounded up."""
  num_timesteps = run.schedule.num_timesteps
  if _LEVEL.value is None:
    return -(-num_timesteps // share)
  if not 1 <= _LEVEL.value <= num_timesteps:
    raise ConfigError(f'--level: found {_LEVEL.value}, must be from 1 to the T = {num_timesteps} of the run')
  return _LEVEL.value


def _read_image(flag: flags.FlagHolder, data_config: DataConfig) -> np.ndarray:
  """[H, W, C] uint8, of the size and channels of the run."""
  data_config = dataclasses.replace(data_config, stack=1, resize=_RESIZE.value or data_config.resize)
  problem, _ = images_lib.size_problem(*_size(flag), data_config)
  if problem:
    raise ConfigError(
        f'--{flag.name}: {flag.value} {problem}; --resize=cover (shrink or enlarge it, crop the centre) would be right')
  try:
    return images_lib.decode(_bytes(flag), data_config)
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag.name}: {flag.value} {error}') from error


def _read_mask(data_config: DataConfig) -> np.ndarray:
  """[H, W, 1] bool, True is to be filled in; fitted as the image is."""
  found, image, run = _size(_MASK), _size(_IMAGE), (data_config.image_size,) * 2
  if found not in (image, run):
    sizes = ' or '.join(f'{height}x{width}' for height, width in dict.fromkeys((image, run)))
    raise ConfigError(f'--mask: {_MASK.value} is {found[0]}x{found[1]}, must be {sizes}')
  mask = _read_image(_MASK, dataclasses.replace(data_config, num_channels=1)) >= 128
  if not mask.any():
    raise ConfigError(f'--mask: {_MASK.value} is black everywhere, so there is nothing to fill in; white is filled in')
  return mask


def _size(flag: flags.FlagHolder) -> tuple[int, int]:
  """(height, width) of a picture, upright."""
  try:
    return images_lib.size(_bytes(flag))
  except images_lib.BadImage as error:
    raise ConfigError(f'--{flag.name}: {flag.value} {error}') from error


def _bytes(flag: flags.FlagHolder) -> bytes:
  return images_lib.read_file(flag.value)


def _to_float(image: np.ndarray) -> np.ndarray:
  return image.astype(np.float32) / np.float32(127.5) - 1


if __name__ == '__main__':
  app.run(main)
