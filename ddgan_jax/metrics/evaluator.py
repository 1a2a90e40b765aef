"""Computes features of images, sharded over all devices and processes, and metrics of these features.

Every value is reported with its n and its features. Samples are uint8, as in a PNG. Means and covariances are streamed;
features of all rows are kept only for metrics that need them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.config.checks import MIN_SAMPLES, STATISTICS_METRICS, check_metrics
from ddgan_jax.data.sources import Source
from ddgan_jax.metrics import (
    frechet,
    gathering,
    image_sets,
    inception_score,
    kid,
    memorization,
    mind,
    modes,
    networks,
    points,
    precision_recall,
)
from ddgan_jax.metrics.image_sets import ImageSet
from ddgan_jax.metrics.statistics import FEATURES, Statistics, digest, load_cached, store
from ddgan_jax.parallel import compilation, sharding

# Metric → its names in reports, and the function, applied to equally many reference and sample features. k is that of
# the metrics' papers, with DINOv2 that of Stein et al. (2023).
_PAIRED = {
    'pr': (('precision', 'recall'), functools.partial(precision_recall.precision_recall, k=3)),
    'dc': (('density', 'coverage'), functools.partial(precision_recall.density_coverage, k=5)),
    'mind': (('mind',), mind.monge_distance),
    'pr_dinov2': (('precision_dinov2', 'recall_dinov2'), functools.partial(precision_recall.precision_recall, k=5)),
    'dc_dinov2': (('density_dinov2', 'coverage_dinov2'), functools.partial(precision_recall.density_coverage, k=5)),
    'mind_dinov2': (('mind_dinov2',), mind.monge_distance)}


class Collected(NamedTuple):
  """The outputs of a network for a set: `moments` of one output, and all rows of others."""

  moments: frechet.Moments | None
  rows: dict[str, np.ndarray]


class Evaluator:
  """Measures sets of images against one reference, whose features are computed once.

  Args:
    metrics: some of `config.checks.METRICS`.
    reference: images, or statistics read from a file, for the metric that compares them (`fid`, `fid_clean` or
      `fd_dinov2`).
    mesh: the devices; all processes take part in every call.
    num: maximum number of images; `image_sets.subset` samples larger sets.
    batch_size: global batch size.
    classifier: the classifier of the data's classes, and whether images are stacks of three; for `modes` and
      `label_accuracy`.
    weights: paths of weight files, under `inception`, `vgg16` and `dinov2`; see `weights.find` for the default.
    allow_any: also accept weights whose checksum is not the published one.
    log: receives a sentence about each slow step.
    splits: number of splits of the Inception score.
    dinov2_model: one of `dinov2.MODELS`.
    held_out: images of the data that were not trained on, whose authenticity is measured, too.
    num_closest: number of images in `closest`.

  Attributes:
    closest: after `evaluate` with a metric of authenticity, the samples that are the least authentic, and their nearest
      images in the reference, [num_closest, H, W, C] uint8 each; None before, or if num_closest is 0.

  Raises:
    UserError: a metric lacks its reference or classifier, or the reference has statistics of other features.
  """

  def __init__(
      self, metrics: Sequence[str], reference: ImageSet | Statistics | None, mesh: Any, num: int, batch_size: int,
      classifier: tuple[modes.ModeClassifier, bool] | None = None, weights: dict[str, str | None] | None = None,
      allow_any: bool = False, log: Callable[[str], None] = print, splits: int = 10, dinov2_model: str = 'vitl14',
      held_out: ImageSet | None = None, num_closest: int = 0):
    check_metrics('metrics', metrics)
    comparing = [name for name in metrics if name not in ('is', 'label_accuracy')]
    if comparing and reference is None:
      raise ConfigError(f'{", ".join(comparing)}: no reference; set --workdir, --config or --reference')
    # The reference's mean and covariance, of all its images.
    self._moments: dict[str, Statistics] = {}
    if isinstance(reference, Statistics):
      _check_statistics(reference, comparing, networks.feature_names(dinov2_model))
      self._moments = {networks.DISTANCES[name]: reference for name in comparing}
    if needs_classifier(metrics) and classifier is None:
      raise ConfigError(f'{", ".join(needs_classifier(metrics))}: no labelled data; set --workdir or --config')
    self._metrics = tuple(metrics)
    self._reference = reference
    self._mesh = mesh
    self._num = num
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._log = log
    self._splits = splits
    self._held_out, self._num_closest = held_out, num_closest
    self._held_out_rows: dict[str, Collected] = {}
    self.closest: tuple[np.ndarray, np.ndarray] | None = None
    if self._authenticities and isinstance(reference, ImageSet) and reference.size is None:
      raise ConfigError(f'{self._authenticities[0]}: {reference.name} has no last image; use data of a fixed size')
    if self._authenticities and held_out:
      image_sets.check_same_shape(held_out, reference)
    if 'is' in metrics:
      inception_score.check_splits(splits, num)
    # The reference's rows, by network and number of images.
    self._rows: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    self._networks = networks.load(metrics, weights or {}, allow_any, dinov2_model, classifier)
    if needs_classifier(metrics):
      self._classifier, stacked = classifier
      self._stack = 3 if stacked else 1
      self._num_modes = self._classifier.num_classes**self._stack
    self._features = {}

  def evaluate(self, images: ImageSet) -> dict[str, Any]:
    """Measures a set of images.

    Returns:
      {'images', 'n', 'reference', 'reference_digest', 'n_reference', 'biased', 'metrics': {name: {'value', 'features',
      'features_digest', …}}} with Python numbers, the same on every process. Digests are equal for equal images or
      statistics and for equal networks; that of the reference is None if unknown.

    Raises:
      ConfigError: images and reference differ in shape, or label_accuracy lacks requested labels.
    """
    if 'label_accuracy' in self._metrics:
      check_label_accuracy(images)
    if isinstance(self._reference, ImageSet):
      image_sets.check_same_shape(images, self._reference)
    images = image_sets.subset(images, self._num)
    num = self._num if images.size is None else images.size
    report = {
        'images': images.name, 'n': num, 'reference': self._reference.name if self._reference else None,
        'reference_digest': self._reference_digest(), 'n_reference': self._reference_size(),
        'biased': num < MIN_SAMPLES, 'metrics': {}}
    found = self._collect(images, num, networks.rows(self._metrics), self._compared)
    self._read_reference(num)

    def put(name: str, network: str, **values) -> None:
      used = self._networks[network]
      report['metrics'][name] = {**values, 'features': used.name, 'features_digest': used.fingerprint}

    def put_distance(name: str, network: str) -> None:
      put(name, network, value=_distance(found[network].moments, self._moments[network]))

    for metric in [name for name in self._metrics if name in networks.DISTANCES and name != 'modes']:
      put_distance(metric, networks.DISTANCES[metric])
    if 'is' in self._metrics:
      mean, deviation = inception_score.inception_score(found['inception'].rows['logits'], self._splits)
      put('is', 'inception', value=mean, deviation=deviation, splits=self._splits)
    if 'kid' in self._metrics:
      real = self._rows['inception', self._reference_size()]['pool3']
      mean, deviation = kid.kernel_distance(real, found['inception'].rows['pool3'])
      put('kid', 'inception', value=mean, deviation=deviation)
    for metric in [name for name in self._metrics if name in _PAIRED]:
      (network, (output,)), (names, function) = networks.ROWS[metric], _PAIRED[metric]
      real, fake = self._rows[network, self._num_paired(num)][output], found[network].rows[output]
      for name, value in zip(names, np.atleast_1d(function(real, fake))):
        put(name, network, value=float(value), n_reference=len(real))
    if 'modes' in self._metrics:
      rows, of_real = found['classifier'].rows, self._rows['classifier', self._num_paired(num)]
      counted, counted_real = (
          modes.summary(each['mode'], each['certain'], self._num_modes) for each in (rows, of_real))
      for name, value in counted.items():
        put(name, 'classifier', value=value, of_reference=counted_real[name], n_reference=len(of_real['mode']))
      for name in ('modes', 'modes_certain'):
        report['metrics'][name]['out_of'] = self._num_modes
      put_distance('fd_classifier', 'classifier')
    for metric in self._authenticities:
      self._put_authenticity(metric, images, found, put)
    if 'label_accuracy' in self._metrics:
      mode, requested = found['classifier'].rows['mode'], images.requested_labels(num)
      for name, value in modes.label_accuracy(mode, requested, self._classifier.num_classes, self._stack).items():
        of_classifier = self._classifier.accuracy ** (self._stack if name == 'label_accuracy' else 1)
        put(name, 'classifier', value=value, of_classifier=of_classifier, n_classifier=self._classifier.num_held_out)
    return report

  def _put_authenticity(
      self, metric: str, images: ImageSet, found: dict[str, Collected], put: Callable[..., None]) -> None:
    """Puts the metric of the samples, and that of the held-out images, into the report; sets `closest`."""
    network, (output,) = networks.ROWS[metric]
    train = self._rows[network, self._reference_size()][output]
    measured = memorization.authenticity(train, found[network].rows[output])
    held_out = {}
    if self._held_out:
      if not self._held_out_rows:
        wanted = networks.rows(self._authenticities)
        self._held_out_rows = self._collect(self._held_out, self._held_out.size, wanted, ())
      rows = self._held_out_rows[network].rows[output]
      held_out = {'of_held_out': memorization.authenticity(train, rows).fraction, 'n_held_out': len(rows)}
    put(metric, network, value=measured.fraction, n_reference=len(train), **held_out)
    if self._num_closest and not self.closest:
      chosen = np.argsort(measured.ratio, kind='stable')[:self._num_closest]
      blocks = {first: gathering.gather_rows([images.rows(first, self._batch_size)])
                for first in sorted({int(i) // self._batch_size * self._batch_size for i in chosen})}
      samples = np.stack([blocks[int(i) // self._batch_size * self._batch_size][i % self._batch_size] for i in chosen])
      self.closest = samples, self._reference.take(measured.nearest[chosen])

  @property
  def _authenticities(self) -> list[str]:
    return [name for name in self._metrics if name.startswith('authenticity')]

  def reference_statistics(self) -> Statistics:
    """Mean and covariance of the reference's features; requires exactly one metric, which compares them."""
    self._read_reference(self._num)
    return self._moments[networks.DISTANCES[self._metrics[0]]]

  @property
  def _compared(self) -> set[str]:
    """The networks whose mean and covariance are compared."""
    return {networks.DISTANCES[name] for name in self._metrics if name in networks.DISTANCES}

  def _reference_digest(self) -> str | None:
    if isinstance(self._reference, Statistics):
      return digest((self._reference.mean, self._reference.covariance))
    return self._reference.fingerprint or None if self._reference else None

  def _reference_size(self) -> int | None:
    """Number of images in the reference's moments; 50,000 for an infinite set."""
    if isinstance(self._reference, Statistics) or self._reference is None:
      return self._reference and self._reference.count
    return 50_000 if self._reference.size is None else self._reference.size

  def _num_paired(self, num: int) -> int:
    """Number of reference images for metrics that compare equally many, for a set of `num`."""
    return min(num, self._reference_size())

  def _read_reference(self, num: int) -> None:
    """Computes missing features of the reference, of all its images or of a subset of `num`."""
    size = self._reference_size()
    missing: dict[int, dict[str, set[str]]] = {}
    keys = {}
    for name in self._compared - self._moments.keys():
      fingerprint = self._reference.fingerprint
      keys[name] = f'{self._networks[name].fingerprint} {fingerprint} {size}' if fingerprint else ''
    for name, key in sorted(keys.items()):
      # Machines have separate caches; that of process 0 decides for all, so that all compute or none.
      known = gathering.from_main(load_cached(key) if jax.process_index() == 0 else None)
      if known is None:
        missing.setdefault(size, {})[name] = set()
      else:
        self._moments[name] = self._reference_moments(name, known.mean, known.covariance)
    new = sorted(keys.keys() - self._moments.keys())
    for metric in [name for name in self._metrics if name in networks.WHOLE + networks.PAIRED]:
      name, outputs = networks.ROWS[metric]
      count = size if metric in networks.WHOLE else self._num_paired(num)
      if (name, count) not in self._rows:
        missing.setdefault(count, {}).setdefault(name, set()).update(outputs)
    if new:
      names = ' and '.join(self._networks[name].name for name in new)
      self._log(f'Computing features of {size:,} images of {self._reference.name} ({names}), once.')
    for count, wanted in missing.items():
      compared = new if count == size else ()
      for name, found in self._collect(image_sets.subset(self._reference, count), count, wanted, compared).items():
        if found.rows:
          self._rows[name, count] = found.rows
        if found.moments:
          self._moments[name] = self._reference_moments(name, found.moments.mean, found.moments.covariance())
          store(keys[name], self._moments[name], self._log)

  def _reference_moments(self, network: str, mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    name = self._networks[network].name
    return Statistics(self._reference.name, mean, covariance, self._reference_size(), name)

  def _collect(
      self, images: ImageSet, num: int, wanted: dict[str, set[str]], compared: Collection[str]) -> dict[str, Collected]:
    """Runs the networks of `wanted` (name → outputs to keep) on the first `num` images, over all processes.

    Means and covariances are those of the networks in `compared`. All networks process a batch before the next one is
    read, so each sample is drawn once.
    """
    rows, whole = sharding.batch_sharding(self._mesh), sharding.replicated(self._mesh)
    for name in wanted:
      if name not in self._features:
        network = self._networks[name]
        apply = compilation.jit(network.apply, in_shardings=(whole, rows), out_shardings=rows)
        self._features[name] = apply, jax.device_put(network.params, whole)
    moments: dict[str, frechet.Moments] = {}
    kept: dict[str, dict[str, list[np.ndarray]]] = {
        name: {output: [] for output in sorted(outputs)} for name, outputs in sorted(wanted.items())}
    local = self._batch_size // jax.process_count()
    for first in range(0, num, self._batch_size):
      batch = jax.make_array_from_process_local_data(rows, images.rows(first, self._batch_size))
      begin = first + local * jax.process_index()
      valid = max(0, min(local, num - begin))
      for name, blocks in kept.items():
        apply, params = self._features[name]
        outputs = apply(params, batch)
        if name in compared:
          features = sharding.local_rows(outputs[self._networks[name].moments])
          if name not in moments:
            moments[name] = frechet.Moments(features.shape[1])
          moments[name].add(features[:valid])
        for output in blocks:
          blocks[output].append(sharding.local_rows(outputs[output]))
    gathering.wait()
    return {
        name: Collected(
            gathering.merge_moments(moments[name]) if name in moments else None,
            {output: gathering.gather_rows(blocks)[:num] for output, blocks in kept[name].items()})
        for name in kept}


def _check_statistics(reference: Statistics, metrics: Sequence[str], features: dict[str, str]) -> None:
  """Raises ConfigError unless statistics suffice for these metrics, whose networks have these names."""
  others = [name for name in metrics if name not in STATISTICS_METRICS]
  if others:
    raise ConfigError(f'{", ".join(others)}: {reference.name} only has a mean and a covariance; use images as '
                      f'reference, or the metric {FEATURES[reference.features][0]}')
  for name in metrics:
    expected = features[networks.DISTANCES[name]]
    if reference.features != expected:
      raise ConfigError(f'{name}: {reference.name} has statistics of {reference.features}; use those of {expected}, or '
                        'images as reference')


def _distance(moments: frechet.Moments, reference: Statistics) -> float:
  return float(frechet.frechet_distance(moments.mean, moments.covariance(), reference.mean, reference.covariance))


def make_data_evaluator(
    config: Config, source: Source, mesh: Any, log: Callable[[str], None] = print
) -> Callable[[ImageSet], dict[str, Any]]:
  """Returns a function of images that reports the metrics of `config.eval`, with the run's data as reference."""
  if config.data.is_points:
    return lambda images: points.evaluate(images, config.eval.num, config.eval.batch_size, mesh)
  classifier = None
  if needs_classifier(config.eval.metrics):
    classifier = load_classifier(source, config, config.eval.metrics, log)
  reference = image_sets.dataset_images(source, config.data)
  return Evaluator(
      config.eval.metrics, reference, mesh, config.eval.num, config.eval.batch_size, classifier, log=log).evaluate


def load_classifier(
    source: Source, config: Config, metrics: Sequence[str], log: Callable[[str], None]
) -> tuple[modes.ModeClassifier, bool]:
  """The classifier of a run's data for these metrics, and whether the images are stacks of three."""
  required = modes.REQUIRED_ACCURACY if 'modes' in metrics else modes.REQUIRED_FOR_LABELS
  return modes.load_classifier(source, log, required), config.data.stack == 3


def needs_classifier(metrics: Sequence[str]) -> list[str]:
  """Those of `metrics` that need a classifier of the data's classes."""
  return [name for name in metrics if name in ('modes', 'label_accuracy', 'authenticity_classifier')]


def check_label_accuracy(images: ImageSet) -> None:
  """Raises ConfigError unless these images were sampled with requested labels."""
  if images.requested_labels is None:
    raise ConfigError(f'label_accuracy: {images.name} has no requested labels; use a --workdir with '
                      'generator.num_classes above 0')
