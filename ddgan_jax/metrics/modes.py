"""Counts modes and their balance with a classifier of the data's classes (paper, section 5.3).

The classifier is trained on the run's data in seconds, and cached. For stacked sets it classifies each channel, and the
mode is 100a + 10b + c. The features before its last layer give a Fréchet distance without a download, which is not FID.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from ddgan_jax import models
from ddgan_jax.config import UserError
from ddgan_jax.data.sources import Source
from ddgan_jax.metrics import statistics
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, consensus
from ddgan_jax.utils import files

REQUIRED_ACCURACY = 0.97  # to count modes
REQUIRED_FOR_LABELS = 0.5  # for `label_accuracy` alone, which is reported beside the classifier's accuracy
_MARGIN = 0.2  # over the share of the largest class
_CERTAIN = 0.9
_VERSION = 2  # increased when the same data would give another classifier
_HELD_OUT = 10  # every tenth image is held out
_STEPS = 1000  # twice as many for images of 16 pixels and more
_BATCH = 128
_barrier_ids = itertools.count()


class ClassifierError(UserError):
  """The data has no labels, or the classifier is not accurate enough to count modes."""


class ModeClassifier(NamedTuple):
  """A trained classifier of single (not stacked) images.

  Attributes:
    params: parameters of `models.Classifier`.
    num_classes: number of classes.
    accuracy: accuracy on held-out images, 0 to 1.
    num_held_out: number of held-out images.
    fingerprint: fingerprint of its training data, or of `params` if the data has no checksum.
  """

  params: Any
  num_classes: int
  accuracy: float
  num_held_out: int
  fingerprint: str


def load_classifier(
    source: Source, log: Callable[[str], None] = print, required: float = REQUIRED_ACCURACY) -> ModeClassifier:
  """Loads the classifier of a source from the cache, or trains it; caches it if the source has a checksum.

  Every tenth image is held out. All processes get the classifier of process 0.

  Args:
    source: labelled images; grey for stacked sets.
    log: receives a sentence with the accuracy.
    required: least accuracy on the held-out images; at least the share of the largest class plus 20%.

  Raises:
    ClassifierError: the source has no labels, or the held-out accuracy is below `required`.
  """
  if source.labels is None:
    raise ClassifierError(f'{source.name} has no labels; use labelled data')
  names = np.unique(source.labels)
  if names[0] < 0:
    raise ClassifierError(f'{source.name} has images with unknown labels; use labelled data')
  num_classes = int(names[-1]) + 1
  held_out = np.arange(0, len(source), _HELD_OUT)
  shapes = jax.eval_shape(lambda: _initial(num_classes, source.image_shape))
  # Without a checksum, sources of the same shape cannot be distinguished, so nothing is cached.
  fingerprint = source.checksum and hashlib.sha256(
      f'{_VERSION} {source.checksum} {source.image_shape}'.encode()).hexdigest()[:16]
  path = files.cache_dir('classifiers') / f'{fingerprint}.npz'
  found = _read(path, shapes) if jax.process_index() == 0 and fingerprint else None
  if found is None:
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found = _train(source, num_classes, held_out) if jax.process_index() == 0 else (zeros, np.float64(0))
    if jax.process_index() == 0 and fingerprint:
      leaves = {f'{i}': leaf for i, leaf in enumerate(jax.tree.leaves(found[0]))}
      statistics.cache_npz(path, {'accuracy': found[1], **leaves}, log)
  consensus.barrier(f'classifier {next(_barrier_ids)}')
  if jax.process_count() > 1:
    found = multihost_utils.broadcast_one_to_all(jax.tree.map(np.float32, found))
  params, accuracy = found
  accuracy = float(accuracy)
  log(f'The classifier of {source.name} has accuracy {accuracy:.1%} on {len(held_out):,} held-out images.')
  required = max(required, min(REQUIRED_ACCURACY, float(np.bincount(source.labels).max() / len(source)) + _MARGIN))
  if accuracy < required:
    raise ClassifierError(
        f'{source.name}: the classifier has accuracy {accuracy:.1%} on {len(held_out):,} held-out images; '
        f'{required:.0%} is required to {"count modes" if required == REQUIRED_ACCURACY else "judge labels"}')
  return ModeClassifier(params, num_classes, accuracy, len(held_out), fingerprint or statistics.digest(params))


def classify(params: Any, images: jax.Array, num_classes: int, stacked: bool) -> dict[str, jax.Array]:
  """Classifies images; a pure function, for jit.

  Args:
    params: `ModeClassifier.params`.
    images: [B, H, W, C] uint8.
    num_classes: `ModeClassifier.num_classes`.
    stacked: whether each channel is one image.

  Returns:
    `mode` [B] int32, the predicted label (a * n² + b * n + c for a stack with n classes); `certain` [B] bool, whether
    its probability (for a stack, each of the three) is at least 0.9; and `features` [B, F] float32, concatenated over
    the channels of a stack.
  """
  batch, height, width, channels = images.shape
  x = images.astype(jnp.float32) / 127.5 - 1
  parts = channels if stacked else 1
  if stacked:
    x = jnp.moveaxis(x, -1, 1).reshape(batch * channels, height, width, 1)
  logits, features = models.Classifier(num_classes).apply({'params': params}, x)
  labels = jnp.argmax(logits, -1).reshape(batch, parts).astype(jnp.int32)
  certain = (jax.nn.softmax(logits).max(-1) >= _CERTAIN).reshape(batch, parts).all(1)
  places = jnp.asarray([num_classes**(parts - 1 - k) for k in range(parts)], jnp.int32)
  return {'mode': labels @ places, 'certain': certain, 'features': features.reshape(batch, -1)}


def count_modes(labels: np.ndarray, num_modes: int) -> tuple[int, float]:
  """Number of modes among `labels` [n] int, and KL(their histogram || uniform) in nats.

  The KL of a perfect sampler is about (num_modes - 1) / (2 n).
  """
  counts = np.bincount(labels, minlength=num_modes)
  p = counts[counts > 0] / counts.sum()
  return int((counts > 0).sum()), float((p * np.log(p * num_modes)).sum())


def summary(labels: np.ndarray, certain: np.ndarray, num_modes: int) -> dict[str, float]:
  """Summarises `mode` and `certain` [n] of `classify`.

  Returns:
    `modes` and `mode_kl` of all predictions; `certain`, the fraction of confident predictions; and `modes_certain`, the
    number of modes among these, because the classifier assigns a class even to noise.
  """
  found, kl = count_modes(labels, num_modes)
  return {'modes': found, 'modes_certain': count_modes(labels[certain], num_modes)[0], 'mode_kl': kl,
          'certain': float(certain.mean())}


def label_accuracy(predicted: np.ndarray, requested: np.ndarray, num_classes: int, stack: int) -> dict[str, float]:
  """Fraction of images that the classifier assigns to their requested label.

  Args:
    predicted: [n] int, modes of `classify`.
    requested: [n] int, requested labels.
    num_classes: `ModeClassifier.num_classes`.
    stack: number of stacked images per label.

  Returns:
    `label_accuracy` and, for stacks, `digit_accuracy`, the fraction per channel.
  """
  wanted = labels.digits(requested, stack)
  seen = predicted[:, None] // num_classes ** np.arange(stack - 1, -1, -1) % num_classes
  right = seen == wanted
  whole = {'label_accuracy': float(right.all(1).mean())}
  return whole | ({'digit_accuracy': float(right.mean())} if stack > 1 else {})


def _initial(num_classes: int, image_shape: tuple[int, int, int]) -> Any:
  return models.Classifier(num_classes).init(jax.random.key(0), jnp.zeros((1, *image_shape)))['params']


def _train(source: Source, num_classes: int, held_out: np.ndarray) -> tuple[Any, np.float64]:
  """Trains with Adam on randomly shifted images; returns the parameters and the accuracy on `held_out`."""
  classifier = models.Classifier(num_classes)
  small = source.image_shape[0] < 16
  reach, steps = (1, _STEPS) if small else (2, 2 * _STEPS)
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  def loss_fn(params, x, labels):
    logits, _ = classifier.apply({'params': params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @compilation.jit
  def step(params, moments, key, images, labels):
    shift_key, noise_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (images.shape[0], 2), 0, 2 * reach + 1)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode='edge')
    shifted = jax.vmap(lambda image, by: jax.lax.dynamic_slice(image, (*by, 0), source.image_shape))(padded, shifts)
    x = shifted.astype(jnp.float32) / 127.5 - 1
    x += 0.1 * jax.random.normal(noise_key, x.shape)
    updates, moments = optimizer.update(jax.grad(loss_fn)(params, x, labels), moments)
    return optax.apply_updates(params, updates), moments

  rng = np.random.default_rng(0)
  train = np.setdiff1d(np.arange(len(source)), held_out)
  params = jax.jit(functools.partial(_initial, num_classes, source.image_shape))()
  moments = optimizer.init(params)
  for i in range(steps):
    images, labels = source.gather(np.sort(rng.choice(train, _BATCH)))
    params, moments = step(params, moments, jax.random.key(i), images, labels)
  predict = compilation.jit(lambda images: classify(params, images, num_classes, stacked=False)['mode'])
  right = 0
  for first in range(0, len(held_out), 1000):
    images, labels = source.gather(held_out[first:first + 1000])
    right += int((np.asarray(predict(images)) == labels).sum())
  return jax.tree.map(np.asarray, params), np.float64(right / len(held_out))


def _read(path: pathlib.Path, shapes: Any) -> tuple[Any, np.float64] | None:
  try:
    with np.load(path) as file:
      leaves, tree = jax.tree.flatten(shapes)
      return tree.unflatten([file[f'{i}'].reshape(leaf.shape) for i, leaf in enumerate(leaves)]), file['accuracy'][()]
  except Exception:  # absent or damaged, for which zipfile raises many types
    return None
