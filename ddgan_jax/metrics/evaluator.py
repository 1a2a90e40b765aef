"""Computes features of images, sharded over all devices and processes, and metrics of these features.

Every value is reported with its n and its features. Samples are uint8, as in a PNG. Means and covariances are streamed;
features of all rows are kept only for metrics that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddgan_jax.config import Config, ConfigError
from ddgan_jax.config.checks import MIN_SAMPLES, check_metrics
from ddgan_jax.data.sources import Source
from ddgan_jax.metrics import frechet, gathering, image_sets, inception_score, kid, modes, points, precision_recall
from ddgan_jax.metrics.features import inception, vgg
from ddgan_jax.metrics.image_sets import ImageSet
from ddgan_jax.metrics.statistics import Statistics, digest, load_cached, store
from ddgan_jax.parallel import compilation, sharding


class Network(NamedTuple):
  """A fixed feature network.

  Attributes:
    name: its name in tables.
    fingerprint: equal for equal weights.
    params: a pytree of arrays.
    apply: a pure function (params, images [B, H, W, C] uint8) → {name: [B, …]}.
    moments: the output whose mean and covariance are streamed, or '' for none.
  """

  name: str
  fingerprint: str
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
  moments: str = ''


class Collected(NamedTuple):
  """The outputs of a network for a set: `moments` of one output, and all rows of others."""

  moments: frechet.Moments | None
  rows: dict[str, np.ndarray]


class Evaluator:
  """Measures sets of images against one reference, whose features are computed once.

  Args:
    metrics: some of `config.checks.METRICS`.
    reference: images, or statistics read from a file (for `fid` only).
    mesh: the devices; all processes take part in every call.
    num: maximum number of images; `image_sets.subset` samples larger sets.
    batch_size: global batch size.
    classifier: the classifier of the data's classes, and whether images are stacks of three; for `modes` and
      `label_accuracy`.
    weights: paths of weight files, under `inception` and `vgg16`; see `weights.find` for the default.
    allow_any: also accept weights whose checksum is not the published one.
    log: receives a sentence about each slow step.
    splits: number of splits of the Inception score.

  Raises:
    UserError: a metric lacks its reference or classifier.
  """

  def __init__(
      self, metrics: Sequence[str], reference: ImageSet | Statistics | None, mesh: Any, num: int, batch_size: int,
      classifier: tuple[modes.ModeClassifier, bool] | None = None, weights: dict[str, str | None] | None = None,
      allow_any: bool = False, log: Callable[[str], None] = print, splits: int = 10):
    check_metrics('metrics', metrics)
    comparing = [name for name in metrics if name not in ('is', 'label_accuracy')]
    if comparing and reference is None:
      raise ConfigError(f'{", ".join(comparing)}: no reference; set --workdir, --config or --reference')
    others = [name for name in comparing if name != 'fid']
    if others and isinstance(reference, Statistics):
      raise ConfigError(f'{", ".join(others)}: {reference.name} only has a mean and a covariance; use images as '
                        'reference, or the metric fid')
    if needs_classifier(metrics) and classifier is None:
      raise ConfigError(f'{", ".join(needs_classifier(metrics))}: no labelled data; set --workdir or --config')
    self._metrics = tuple(metrics)
    self._reference = reference
    self._mesh = mesh
    self._num = num
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._log = log
    self._splits = splits
    if 'is' in metrics:
      inception_score.check_splits(splits, num)
    # Caches of the reference: moments of all its images, and rows by network and number of images.
    self._moments: dict[str, Statistics] = {'inception': reference} if isinstance(reference, Statistics) else {}
    self._rows: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    weights = weights or {}
    self._networks: dict[str, Network] = {}
    if {'fid', 'is', 'kid'} & set(metrics):
      params = inception.load(weights.get('inception'), allow_any)
      self._networks['inception'] = Network(
          'FID Inception', digest(params), params,
          lambda params, x: dict(zip(('pool3', 'logits'), inception.features(params, x))), 'pool3')
    if {'pr', 'dc'} & set(metrics):
      params = vgg.load(weights.get('vgg16'), allow_any)
      self._networks['vgg16'] = Network(
          'VGG16 fc2', digest(params), params, lambda params, x: {'fc2': vgg.features(params, x)})
    if needs_classifier(metrics):
      classifier, stacked = classifier
      self._classifier, self._stack = classifier, 3 if stacked else 1
      self._num_modes = classifier.num_classes**self._stack
      self._networks['classifier'] = Network(
          'classifier of the data', classifier.fingerprint, classifier.params,
          lambda params, x: modes.classify(params, x, classifier.num_classes, stacked), 'features')
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
    wanted = {
        'inception': [name for name, metric in (('logits', 'is'), ('pool3', 'kid')) if metric in self._metrics],
        'vgg16': ['fc2'], 'classifier': ['mode', 'certain']}
    found = self._collect(images, num, {name: wanted[name] for name in self._networks})
    self._read_reference(num)

    def put(name: str, network: str, **values) -> None:
      used = self._networks[network]
      report['metrics'][name] = {**values, 'features': used.name, 'features_digest': used.fingerprint}

    if 'fid' in self._metrics:
      put('fid', 'inception', value=_distance(found['inception'].moments, self._moments['inception']))
    if 'is' in self._metrics:
      mean, deviation = inception_score.inception_score(found['inception'].rows['logits'], self._splits)
      put('is', 'inception', value=mean, deviation=deviation, splits=self._splits)
    if 'kid' in self._metrics:
      real = self._rows['inception', self._reference_size()]['pool3']
      mean, deviation = kid.kernel_distance(real, found['inception'].rows['pool3'])
      put('kid', 'inception', value=mean, deviation=deviation)
    if {'pr', 'dc'} & set(self._metrics):
      real, fake = self._rows['vgg16', self._num_paired(num)]['fc2'], found['vgg16'].rows['fc2']
      pairs = {'pr': (('precision', 'recall'), precision_recall.precision_recall),
               'dc': (('density', 'coverage'), precision_recall.density_coverage)}
      for metric in [name for name in self._metrics if name in pairs]:
        names, function = pairs[metric]
        for name, value in zip(names, function(real, fake)):
          put(name, 'vgg16', value=float(value), n_reference=len(real))
    if 'modes' in self._metrics:
      rows, of_real = found['classifier'].rows, self._rows['classifier', self._num_paired(num)]
      counted, counted_real = (
          modes.summary(each['mode'], each['certain'], self._num_modes) for each in (rows, of_real))
      for name, value in counted.items():
        put(name, 'classifier', value=value, of_reference=counted_real[name], n_reference=len(of_real['mode']))
      for name in ('modes', 'modes_certain'):
        report['metrics'][name]['out_of'] = self._num_modes
      put('fd_classifier', 'classifier', value=_distance(found['classifier'].moments, self._moments['classifier']))
    if 'label_accuracy' in self._metrics:
      mode, requested = found['classifier'].rows['mode'], images.requested_labels(num)
      for name, value in modes.label_accuracy(mode, requested, self._classifier.num_classes, self._stack).items():
        of_classifier = self._classifier.accuracy ** (self._stack if name == 'label_accuracy' else 1)
        put(name, 'classifier', value=value, of_classifier=of_classifier, n_classifier=self._classifier.num_held_out)
    return report

  def reference_statistics(self) -> Statistics:
    """Mean and covariance of the reference's pool3 features; requires the metric `fid`."""
    self._read_reference(self._num)
    return self._moments['inception']

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
    missing: dict[int, dict[str, Sequence[str]]] = {}
    new, keys = [], {}
    for metric, name in (('fid', 'inception'), ('modes', 'classifier')):
      if metric in self._metrics and name not in self._moments:
        fingerprint = self._reference.fingerprint
        keys[name] = f'{self._networks[name].fingerprint} {fingerprint} {size}' if fingerprint else ''
        # Machines have separate caches; that of process 0 decides for all, so that all compute or none.
        known = gathering.from_main(load_cached(keys[name]) if jax.process_index() == 0 else None)
        if known is None:
          new.append(name)
          missing.setdefault(size, {})[name] = ()
        else:
          self._moments[name] = known._replace(name=self._reference.name, count=size)
    for metric, name, outputs in (
        ('kid', 'inception', ('pool3',)), ('pr', 'vgg16', ('fc2',)), ('dc', 'vgg16', ('fc2',)),
        ('modes', 'classifier', ('mode', 'certain'))):
      if metric in self._metrics:
        count = size if metric == 'kid' else self._num_paired(num)
        if (name, count) not in self._rows:
          missing.setdefault(count, {})[name] = outputs
    if new:
      networks = ' and '.join(self._networks[name].name for name in new)
      self._log(f'Computing features of {size:,} images of {self._reference.name} ({networks}), once.')
    for count, wanted in missing.items():
      for name, found in self._collect(image_sets.subset(self._reference, count), count, wanted).items():
        if found.rows:
          self._rows[name, count] = found.rows
        if count == size and name in new:
          self._moments[name] = Statistics(self._reference.name, found.moments.mean, found.moments.covariance(), size)
          store(keys[name], self._moments[name], self._log)

  def _collect(self, images: ImageSet, num: int, wanted: dict[str, Sequence[str]]) -> dict[str, Collected]:
    """Runs the networks of `wanted` (name → outputs to keep) on the first `num` images, over all processes.

    All networks process a batch before the next one is read, so each sample is drawn once.
    """
    rows, whole = sharding.batch_sharding(self._mesh), sharding.replicated(self._mesh)
    for name in wanted:
      if name not in self._features:
        network = self._networks[name]
        apply = compilation.jit(network.apply, in_shardings=(whole, rows), out_shardings=rows)
        self._features[name] = apply, jax.device_put(network.params, whole)
    moments: dict[str, frechet.Moments] = {}
    kept: dict[str, dict[str, list[np.ndarray]]] = {
        name: {output: [] for output in outputs} for name, outputs in wanted.items()}
    local = self._batch_size // jax.process_count()
    for first in range(0, num, self._batch_size):
      batch = jax.make_array_from_process_local_data(rows, images.rows(first, self._batch_size))
      begin = first + local * jax.process_index()
      valid = max(0, min(local, num - begin))
      for name, blocks in kept.items():
        apply, params = self._features[name]
        outputs = apply(params, batch)
        if output := self._networks[name].moments:
          features = sharding.local_rows(outputs[output])
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
        for name in wanted}


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
  return [name for name in metrics if name in ('modes', 'label_accuracy')]


def check_label_accuracy(images: ImageSet) -> None:
  """Raises ConfigError unless these images were sampled with requested labels."""
  if images.requested_labels is None:
    raise ConfigError(f'label_accuracy: {images.name} has no requested labels; use a --workdir with '
                      'generator.num_classes above 0')
