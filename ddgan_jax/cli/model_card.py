"""The model card of an exported run: a README.md in the format of the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import ddgan_jax
from ddgan_jax import train_state
from ddgan_jax.config import FILE_SOURCES, Config
from ddgan_jax.config.checks import MIN_SAMPLES
from ddgan_jax.metrics import reports

PICTURE = 'samples.png'
_METHODS = {
    'ddgan': 'denoising diffusion GAN', 'relativistic': 'denoising diffusion GAN with relativistic pairing',
    'rduot': 'denoising diffusion GAN with semi-unbalanced optimal transport (RDUOT)', 'ufogen': 'UFOGen diffusion GAN',
    'siddm': 'SIDDM diffusion GAN', 'gaussian': 'Gaussian diffusion model',
    'augmented_gan': 'one-shot GAN with diffusion as augmentation'}
_HUB_NAMES = {'cifar10': 'uoft-cs/cifar10', 'mnist': 'ylecun/mnist', 'fashion_mnist': 'zalando-datasets/fashion_mnist'}
_DIGITS = ('scikit-learn\'s handwritten digits (E. Alpaydin and C. Kaynak, 1998, Optical Recognition of Handwritten '
           'Digits, UCI repository, CC BY 4.0)')
_CITATION = '''```bibtex
@inproceedings{xiao2022tackling,
  title     = {Tackling the Generative Learning Trilemma with Denoising Diffusion {GAN}s},
  author    = {Zhisheng Xiao and Karsten Kreis and Arash Vahdat},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2022}
}
```'''


def make(
    run: ddgan_jax.Run, name: str, licence: str | None, num_images: int | None, measured: Sequence[dict[str, Any]],
    caption: str | None, sigma_rel: float | None = None) -> str:
  """The text of the card.

  Args:
    run: the run, with a config without paths of this machine.
    name: OWNER/NAME.
    licence: an identifier of the Hub, such as `apache-2.0`; None if the user stated none.
    num_images: number of training images, if known.
    measured: reports of these parameters, see `reports.of_generator`.
    caption: describes the picture `PICTURE`; None if there is none.
    sigma_rel: the relative length of a reconstructed EMA; None for that of the training.
  """
  config, num_timesteps = run.config, run.schedule.num_timesteps
  evaluations = f'{num_timesteps:,} evaluation{"s" if num_timesteps > 1 else ""} of its generator'
  method = _METHODS[config.method]
  article = 'An' if method[0] in 'aeio' else 'A'
  picture = [f'![Samples of the model]({PICTURE})', f'*{caption}*'] if caption else []
  return '\n\n'.join([
      _front_matter(config, licence),
      f'# {method[0].upper()}{method[1:]} of {_subject(config)}',
      f'{article} {method} that samples {_what(config)} in {evaluations}, trained with ddgan_jax (JAX and Flax) after '
      '[Xiao et al., 2022](https://arxiv.org/abs/2112.07804).',
      *picture, '## Use', _usage(config, name), '## Model and training', _facts(run, num_images, sigma_rel),
      '## Metrics', _metrics(config, measured), '## Limitations', _limitations(config, num_images, measured),
      '## Citation', _CITATION, '## Licence', _licence(licence)]) + '\n'


def _front_matter(config: Config, licence: str | None) -> str:
  conditional = config.data.condition != 'none'
  fields: dict[str, Any] = {
      'license': licence, 'library_name': 'ddgan_jax',
      'pipeline_tag': 'image-to-image' if conditional else 'unconditional-image-generation',
      'tags': ['ddgan_jax', 'jax', 'flax', 'denoising-diffusion-gan', config.method],
      'datasets': [_HUB_NAMES[config.data.name]] if config.data.name in _HUB_NAMES else None}
  # JSON strings and lists are YAML.
  lines = [f'{name}: {json.dumps(value)}' for name, value in fields.items() if value]
  return '\n'.join(['---', *lines, '---'])


def _subject(config: Config) -> str:
  data = config.data
  return os.path.splitext(data.path)[0] if data.name in FILE_SOURCES else data.name


def _what(config: Config) -> str:
  """What the model samples, such as `8x8 grey images`."""
  data = config.data
  if data.is_points:
    return 'points in the plane'
  channels = {1: 'grey', 3: 'RGB'}.get(data.num_channels, f'{data.num_channels}-channel')
  kind = f'images of {channels} float32 values' if data.value_range else f'{channels} images'
  return f'{data.image_size}x{data.image_size} {kind}'


def _data(config: Config) -> str:
  data = config.data
  if data.name == 'digits':
    return _DIGITS
  if data.name in FILE_SOURCES:
    return f'own images, {data.name} `{data.path}`'
  return f'`{data.name}`' + (f' of TFDS, split `{data.split}`' if not data.is_points else '')


def _usage(config: Config, name: str) -> str:
  shape = ', '.join(map(str, config.image_shape))
  arguments = ''
  if config.generator.num_classes:
    arguments += ', label=0'
  if config.data.condition_shape:
    arguments += f', condition=condition)  # float32 {list(config.data.condition_shape)} in [-1, 1]'
  sample = f'images = run.sample(jax.random.key(0), 16{arguments}'
  sample += '' if config.data.condition_shape else f')  # [16, {shape}] float32'
  command = f'ddgan sample --workdir hf://{name} --num 16 --out samples.png'
  if config.generator.num_classes:
    command += ' --label all'
  if config.data.condition_shape:
    command += f' --condition condition.{"npz" if config.data.pair_range else "png"}'
  lines = ['import jax, ddgan_jax', '', f"run = ddgan_jax.load('hf://{name}')", sample]
  if config.data.value_range:
    lines.append('values = ddgan_jax.sampling.to_values(images, run.config.data.value_range)')
  elif config.data.is_8_bit:
    lines.append('pixels = ddgan_jax.sampling.to_uint8(images)')
  return '\n'.join([
      '```python', *lines, '```', '', 'This needs `pip install "ddgan_jax[hub]"`. On the command line:', '', '```bash',
      command, '```'])


def _facts(run: ddgan_jax.Run, num_images: int | None, sigma_rel: float | None) -> str:
  config = run.config
  average = 'the EMA of the training' if sigma_rel is None else f'an EMA with sigma_rel {sigma_rel:g}'
  diffusion, generator, train = config.diffusion, config.generator, config.train
  network = {'ncsnpp': 'NCSN++ U-Net', 'mlp': 'MLP'}[generator.kind]
  noise = f'beta {diffusion.beta_min:g} to {diffusion.beta_max:g}'
  rows = {
      'Method': f'`{config.method}`',
      'Denoising steps T': f'{diffusion.num_timesteps:,}, `{diffusion.kind}` schedule, {noise}',
      'Generator': f'{network}, {train_state.count_parameters(run.params):,} parameters ({average})',
      'Training data': _data(config) + (f'; {num_images:,} {"points" if config.data.is_points else "images"}'
                                        if num_images else ''),
      'Training': f'{run.step:,} of {train.num_steps:,} steps, batch size {config.data.batch_size:,}, '
                  f'compute in {config.parallel.dtype}, seed {config.seed}',
      'Labels': f'{generator.num_classes:,} classes' if generator.num_classes else '',
      'Condition': f'`{config.data.condition}`' if config.data.condition_shape else '',
      'Software': f'ddgan_jax {ddgan_jax.__version__}; `config.json` has all settings'}
  return '\n'.join(['| | |', '|---|---|', *(f'| {name} | {_cell(value)} |' for name, value in rows.items() if value)])


def _metrics(config: Config, measured: Sequence[dict[str, Any]]) -> str:
  if not measured:
    return 'This export has no measurements.'
  lines = []
  for report in measured:
    first, count = report['seed'], report.get('seeds', 1)
    seeds = f'seeds {first} to {first + count - 1}, mean ± standard deviation' if count > 1 else f'seed {first}'
    conditions = [f'Sampled in {report["num_timesteps"]:,} steps with {seeds}']
    if report.get('protocol'):
      conditions.append(f'protocol {report["protocol"]}')
    if reference := _reference(report.get('reference'), config):
      count = report.get('n_reference')
      conditions.append(f'reference: {reference}' + (f', n = {count:,}' if count else ''))
    if report.get('jpeg'):
      conditions.append('samples and reference compressed as JPEG')
    if report.get('biased'):
      conditions.append(f'biased, because n is below {MIN_SAMPLES:,}')
    lines += [f'{"; ".join(conditions)}.', '', '| metric | value | n | of real images | features |',
              '|---|---|---|---|---|']
    for name, entry in report['metrics'].items():
      cells = [reports.title(name), reports.value_text(name, entry), f'{report["n"]:,}', reports.real_text(entry),
               entry.get('features', '')]
      lines.append(f'| {" | ".join(_cell(" ".join(cell.split())) for cell in cells)} |')
    lines.append('')
  return '\n'.join(lines[:-1])


def _reference(name: str | None, config: Config) -> str:
  """The name of a reference without its folder."""
  if not name:
    return ''
  # The name of a TFDS set may contain a slash, and a split may follow.
  is_data_set = re.fullmatch(rf'{re.escape(config.data.name)}( \(.*\))?', name)
  return name if is_data_set else os.path.basename(name.rstrip('/'))


def _limitations(config: Config, num_images: int | None, measured: Sequence[dict[str, Any]]) -> str:
  lines = ['- The samples reflect the training data, including their biases and gaps.']
  if not config.data.is_points:
    count = f'{num_images:,} training images' if num_images else 'its training images'
    is_tested = any(name.startswith('authenticity') for report in measured for name in report['metrics'])
    lines.append(f'- {"For memorisation see authenticity above" if is_tested else "Memorisation was not tested"}: the '
                 f'model may reproduce some of {count}, so do not assume that samples are new.')
  lines.append('- The repository has only the averaged (EMA) weights of the generator: training cannot be resumed from '
               'it.')
  return '\n'.join(lines)


def _licence(licence: str | None) -> str:
  stated = f'The weights: `{licence}`.' if licence else 'No licence of the weights is stated; ask their owner.'
  return f'{stated} The training data have their own. ddgan_jax: Apache-2.0.'


def _cell(text: str) -> str:
  return text.replace('|', '\\|')
