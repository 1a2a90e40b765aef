"""Metrics of samples given conditions: distance to the true image, to the condition, and between samples.

Distances are in grey levels 0 … 255, to which values of `data.value_range` are scaled without rounding.

- `psnr`: 10 log10(255² / MSE) in dB, at most 100;
- `ssim`: structural similarity (Wang et al., 2004), mean over pixels and channels, with a Gaussian window of 11 x 11
  pixels and sigma 1.5, without padding, as in scikit-image (torchmetrics also counts a border of windows with
  reflected pixels); for images smaller than 11 pixels, with a uniform window of 7 x 7;
- `diversity`: standard deviation over the samples of a condition, mean over pixels;
- `consistency`: root mean square difference between the condition and that of the sample, computed in the same way; for
  `mask`, over the known pixels.

`psnr_of_mean` and `ssim_of_mean` are those of the mean of the samples, which is the better estimate of the true image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.config.checks import parse_condition
from ddgan_jax.data import conditions, pipeline
from ddgan_jax.metrics import gathering, image_sets
from ddgan_jax.metrics.image_sets import ImageSet

_MAX_PSNR = 100.0
_WINDOW, _SIGMA, _SMALL_WINDOW = 11, 1.5, 7
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MIN_SIZE = _SMALL_WINDOW  # of images for `ssim`


def psnr(images: jax.Array, truth: jax.Array) -> jax.Array:
  """[..., H, W, C] in 0 … 255 twice → [...] in dB."""
  error = jnp.square(jnp.float32(images) - jnp.float32(truth)).mean((-3, -2, -1))
  return 10 * jnp.log10(255**2 / jnp.maximum(error, 255**2 * 10 ** (-_MAX_PSNR / 10)))


def ssim(images: jax.Array, truth: jax.Array) -> jax.Array:
  """[n, H, W, C] in 0 … 255 twice, at least 7 x 7 pixels → [n]."""
  x, y = jnp.float32(images), jnp.float32(truth)
  if x.shape[1] >= _WINDOW:
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
  else:
    window = np.ones(_SMALL_WINDOW)
  window = (window / window.sum()).astype(np.float32)

  def blur(image):
    for axis in (1, 2):
      count = image.shape[axis] - len(window) + 1
      image = sum(w * jax.lax.slice_in_dim(image, i, i + count, axis=axis) for i, w in enumerate(window))
    return image

  mean_x, mean_y = blur(x), blur(y)
  var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
  similarity = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2) / (
      (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
  return similarity.mean((1, 2, 3))


def grey_levels(values: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
  """Scales values from `value_range` to 0 … 255."""
  lowest, highest = value_range
  return (values - lowest) * np.float32(255 / (highest - lowest))


@functools.partial(jax.jit, static_argnames='metrics')
def _compare(samples: jax.Array, truth: jax.Array, metrics: tuple[str, ...]) -> dict[str, jax.Array]:
  """[n, k, H, W, C] and [n, H, W, C] in 0 … 255 → values [n]."""
  n, k, *shape = samples.shape
  mean = jnp.float32(samples).mean(1)
  found = {}
  if 'psnr' in metrics:
    found |= {'psnr': psnr(samples, truth[:, None]).mean(1), 'psnr_of_mean': psnr(mean, truth)}
  if 'ssim' in metrics:
    of_samples = ssim(samples.reshape(n * k, *shape), jnp.repeat(truth, k, axis=0))
    found |= {'ssim': of_samples.reshape(n, k).mean(1), 'ssim_of_mean': ssim(mean, truth)}
  if 'diversity' in metrics:
    found['diversity'] = jnp.float32(samples).std(1).mean((1, 2, 3))
  return found


def measure(
    samples: np.ndarray, truth: np.ndarray, condition: np.ndarray, uniforms: np.ndarray, data_config: DataConfig,
    metrics: Sequence[str]
) -> dict[str, np.ndarray]:
  """Measures samples of several conditions.

  Args:
    samples: [n, k, H, W, C] in 0 … 255, k samples of each condition.
    truth: [n, H, W, C] in 0 … 255.
    condition: [n, h, w, c] float32, computed from `truth`.
    uniforms: [n, conditions.NUM_UNIFORMS], with which it was computed.
    data_config: uses condition.
    metrics: some of `config.checks.CONDITION_METRICS`; `consistency` not for `pairs`, which are not computed.

  Returns:
    [n] float32 for each value.
  """
  n, k = samples.shape[:2]
  found = {name: np.asarray(values) for name, values in _compare(samples, truth, tuple(metrics)).items()}
  if 'consistency' not in metrics:
    return found
  scaled = samples.reshape(n * k, *samples.shape[2:]) / np.float32(127.5) - 1
  again = conditions.compute(scaled, data_config, uniforms.repeat(k, axis=0))
  square = np.square(127.5 * (again - condition.repeat(k, axis=0))).reshape(n, k, *condition.shape[1:])
  if parse_condition(data_config.condition)[0] == 'mask':
    known = (condition[:, None, ..., -1:] < 0).astype(np.float32)
    total, count = (square[..., :-1] * known).sum((2, 3, 4)), known.sum((2, 3, 4)) * (condition.shape[-1] - 1)
    error = total / np.maximum(count, 1)
  else:
    error = square.mean((2, 3, 4))
  return found | {'consistency': np.sqrt(error).mean(1)}


def evaluate(
    images: ImageSet, given: image_sets.ConditionData, metrics: Sequence[str], num: int, batch_size: int, mesh: Any
) -> dict[str, Any]:
  """Reports these metrics of samples and the images of their conditions, like `Evaluator.evaluate`.

  Args:
    images: the samples, `image_sets.generated_images` of `given`.
    given: the data and the number of samples per condition.
    metrics: some of `config.checks.CONDITION_METRICS`.
    num: maximum number of conditions, the first images of the data.
    batch_size: maximum number of samples per global batch; exceeded if one condition per device needs more.
    mesh: the devices.
  """
  source, data_config, per_condition = given
  if 'ssim' in metrics and min(images.shape[:2]) < MIN_SIZE:
    raise ConfigError(f'ssim: images are {images.shape[0]}x{images.shape[1]}; use images of at least '
                      f'{MIN_SIZE}x{MIN_SIZE}')
  num = min(num, pipeline.epoch_size(source, data_config))
  count = max(1, batch_size // per_condition // mesh.size) * mesh.size  # conditions in a batch
  blocks: dict[str, list[np.ndarray]] = {}
  for first in range(0, num, count):
    rows = pipeline.process_rows(count, jax.process_index(), jax.process_count())
    numbers = pipeline.stored_numbers(source, data_config, np.arange(first, first + count)[rows])
    samples = images.rows(first * per_condition, count * per_condition)
    truth = pipeline.stored_images(source, data_config, numbers)
    if data_config.value_range:
      samples, truth = grey_levels(samples, data_config.value_range), 127.5 * (truth + 1)
    found = measure(
        samples.reshape(len(numbers), per_condition, *images.shape), truth,
        pipeline.stored_conditions(source, data_config, numbers), pipeline.condition_uniforms(numbers), data_config,
        metrics)
    for name, values in found.items():
      blocks.setdefault(name, []).append(values)
  gathering.wait()
  values = {name: float(gathering.gather_rows(parts)[:num].mean()) for name, parts in blocks.items()}
  split = f' ({data_config.split})' if data_config.split != 'train' else ''
  features = f'{per_condition} samples per condition'
  return {
      'images': images.name, 'n': num, 'reference': f'{source.name}{split}',
      'reference_digest': source.checksum or None, 'n_reference': num, 'samples_per_condition': per_condition,
      'biased': False, 'metrics': {name: {'value': value, 'features': features} for name, value in values.items()}}
