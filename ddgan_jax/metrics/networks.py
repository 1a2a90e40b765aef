"""The feature networks of the metrics, and what each metric needs of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

from ddgan_jax.metrics import modes
from ddgan_jax.metrics.features import dinov2, inception, vgg
from ddgan_jax.metrics.statistics import FID_INCEPTION, digest

# Metric → the network whose mean and covariance it compares with the reference's.
DISTANCES = {'fid': 'inception', 'fid_clean': 'inception_clean', 'fd_dinov2': 'dinov2', 'modes': 'classifier'}
# Metric → (network, outputs kept for every sample).
ROWS = {
    'is': ('inception', ('logits',)),
    **dict.fromkeys(('kid', 'mind'), ('inception', ('pool3',))),
    **dict.fromkeys(('pr', 'dc'), ('vgg16', ('fc2',))),
    **dict.fromkeys(('pr_dinov2', 'dc_dinov2', 'mind_dinov2'), ('dinov2', ('class',))),
    **dict.fromkeys(('modes', 'label_accuracy'), ('classifier', ('mode', 'certain'))),
    'authenticity_dinov2': ('dinov2', ('class',)), 'authenticity_inception': ('inception', ('pool3',)),
    'authenticity_vgg16': ('vgg16', ('fc2',)), 'authenticity_classifier': ('classifier', ('features',))}
# Metrics that compare the samples with all images of the reference, and with as many as there are samples.
WHOLE = ('kid', *(name for name in ROWS if name.startswith('authenticity')))
PAIRED = ('pr', 'dc', 'mind', 'pr_dinov2', 'dc_dinov2', 'mind_dinov2', 'modes')


class Network(NamedTuple):
  """A fixed feature network.

  Attributes:
    name: its name in tables.
    fingerprint: equal for equal features.
    params: a pytree of arrays.
    apply: a pure function (params, images [B, H, W, C] uint8) → {name: [B, …]}.
    moments: the output whose mean and covariance are streamed if a metric compares them, or '' for none.
  """

  name: str
  fingerprint: str
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
  moments: str = ''


def used(metrics: Collection[str]) -> list[str]:
  """The networks that some of `config.checks.METRICS` need, in an order that is the same on all processes."""
  return sorted({DISTANCES[name] for name in metrics if name in DISTANCES} | {
      ROWS[name][0] for name in metrics if name in ROWS})


def rows(metrics: Collection[str]) -> dict[str, set[str]]:
  """Network → the outputs of all rows that these metrics need, for each network of `used`."""
  outputs: dict[str, set[str]] = {name: set() for name in used(metrics)}
  for name in metrics:
    if name in ROWS:
      outputs[ROWS[name][0]].update(ROWS[name][1])
  return outputs


def feature_names(dinov2_model: str) -> dict[str, str]:
  """Network → its name in tables, for the networks of `statistics.FEATURES`."""
  return {'inception': FID_INCEPTION, 'inception_clean': f'{FID_INCEPTION}, clean-fid',
          'dinov2': f'DINOv2 {dinov2_model}'}


def load(
    metrics: Collection[str], weights: Mapping[str, str | None], allow_any: bool, dinov2_model: str,
    classifier: tuple[modes.ModeClassifier, bool] | None) -> dict[str, Network]:
  """The networks that these metrics need; arguments as those of `evaluator.Evaluator`."""
  networks, needed, names = {}, set(used(metrics)), feature_names(dinov2_model)
  if needed & {'inception', 'inception_clean'}:
    params = inception.load(weights.get('inception'), allow_any)
    fingerprint = digest(params)
    networks['inception'] = Network(
        names['inception'], fingerprint, params,
        lambda params, x: dict(zip(('pool3', 'logits'), inception.features(params, x))), 'pool3')
    networks['inception_clean'] = Network(
        names['inception_clean'], f'{fingerprint} clean', params,
        lambda params, x: {'pool3': inception.clean_features(params, x)}, 'pool3')
  if 'dinov2' in needed:
    params = dinov2.load(weights.get('dinov2'), allow_any, dinov2_model)
    networks['dinov2'] = Network(
        names['dinov2'], digest(params), params, lambda params, x: {'class': dinov2.features(params, x)}, 'class')
  if 'vgg16' in needed:
    params = vgg.load(weights.get('vgg16'), allow_any)
    networks['vgg16'] = Network(
        'VGG16 fc2', digest(params), params, lambda params, x: {'fc2': vgg.features(params, x)})
  if 'classifier' in needed:
    model, stacked = classifier
    networks['classifier'] = Network(
        'classifier of the data', model.fingerprint, model.params,
        lambda params, x: modes.classify(params, x, model.num_classes, stacked), 'features')
  return networks
