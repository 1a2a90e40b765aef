"""The classifier that counts modes: its accuracy, its cache and its errors."""

import jax
import numpy as np
import pytest

from ddgan_jax.config import DataConfig
from ddgan_jax.data import sources
from ddgan_jax.metrics import image_sets, modes
from ddgan_jax.metrics.evaluator import Evaluator
from ddgan_jax.metrics.features import vgg
from ddgan_jax.parallel import sharding

DIGITS = DataConfig(image_size=8, num_channels=1)


@pytest.fixture(scope='module')
def classifier(digits_classifier):
  return digits_classifier


def test_the_classifier_recognises_unseen_digits(classifier):
  model, _ = classifier
  test = sources.load_source(DataConfig(image_size=8, num_channels=1, split='test'))
  images, labels = test.gather(np.arange(len(test)))
  accuracy = np.mean(np.asarray(modes.classify(model.params, images, 10, stacked=False)['mode']) == labels)
  assert accuracy >= modes.REQUIRED_ACCURACY and len(labels) == 299
  assert model.accuracy >= modes.REQUIRED_ACCURACY and model.num_held_out == 150


def test_a_stack_is_classified_by_channel(classifier):
  """The label is 100a + 10b + c, and the channels' features are concatenated."""
  model, source = classifier
  images, labels = source.gather(np.arange(30))
  single = modes.classify(model.params, images, 10, stacked=False)
  stacks = np.concatenate([images[:10], images[10:20], images[20:]], axis=-1)
  stacked = modes.classify(model.params, stacks, 10, stacked=True)
  a, b, c = np.asarray(single['mode']).reshape(3, 10)
  np.testing.assert_array_equal(stacked['mode'], 100 * a + 10 * b + c)
  np.testing.assert_allclose(
      stacked['features'], np.moveaxis(np.asarray(single['features']).reshape(3, 10, -1), 0, 1).reshape(10, -1),
      rtol=1e-5, atol=1e-5)


def test_noise_has_modes_but_few_certain_ones(classifier):
  model, source = classifier
  stacks = image_sets.dataset_images(source, DataConfig(image_size=8, num_channels=3, stack=3))
  evaluator = Evaluator(
      ('modes',), stacks, sharding.make_mesh(jax.devices()[:1]), 500, 500, (model, True), log=lambda text: None)
  noise = np.random.default_rng(0).normal(60, 40, (500, 8, 8, 3)).clip(0, 255).astype(np.uint8)
  on_noise, on_data = (
      evaluator.evaluate(images)['metrics'] for images in (image_sets.array_images(noise, 'noise'), stacks))
  assert on_noise['modes']['value'] > 10 * on_noise['modes_certain']['value']
  assert 0.95 * on_data['modes']['value'] < on_data['modes_certain']['value'] <= on_data['modes']['value']
  for name in ('modes', 'modes_certain'):
    assert on_data[name]['value'] == on_noise[name]['of_reference'] and on_noise[name]['out_of'] == 1000


def test_data_sorted_by_class_are_sampled_from_all_classes(classifier, monkeypatch):
  """Class folders are sorted; 500 of 1,498 digits, as reference and as images, still have all ten classes."""
  model, source = classifier
  monkeypatch.setattr(vgg, 'load', lambda path, allow_any: {})
  monkeypatch.setattr(vgg, 'features', lambda params, images: images.reshape(len(images), -1).astype(np.float32))
  images, labels = source.gather(np.arange(len(source)))
  ordered = sources.ArraySource(images[np.argsort(labels)], np.sort(labels), 'sorted', num_classes=10)
  evaluator = Evaluator(
      ('modes', 'pr', 'dc'), image_sets.dataset_images(ordered, DIGITS), sharding.make_mesh(), 500, 96, (model, False),
      log=lambda text: None)
  shuffled = images[np.random.default_rng(0).permutation(len(images))[:500]]
  metrics = evaluator.evaluate(image_sets.array_images(shuffled, 'shuffled'))['metrics']
  assert metrics['modes']['of_reference'] == 10 and metrics['mode_kl']['of_reference'] < 0.03
  assert metrics['precision']['value'] > 0.85 and metrics['coverage']['value'] > 0.95
  metrics = evaluator.evaluate(image_sets.dataset_images(ordered, DIGITS))['metrics']
  assert metrics['modes']['value'] == 10 and metrics['mode_kl']['value'] < 0.03


def test_the_classifier_is_cached(classifier, monkeypatch):
  model, source = classifier
  monkeypatch.setattr(modes, '_train', lambda *_: pytest.fail('trained again'))
  messages = []
  cached = modes.load_classifier(source, messages.append)
  jax.tree.map(np.testing.assert_array_equal, model.params, cached.params)
  assert messages == [f'The classifier of digits has accuracy {model.accuracy:.1%} on 150 held-out images.']


def test_data_without_a_checksum_are_never_cached(tmp_path, monkeypatch):
  """Two arrays of one shape get different classifiers and fingerprints, and no statistics are cached."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(modes, '_STEPS', 50)
  labels = np.arange(200) // 100
  images = np.broadcast_to(200 * labels[:, None, None, None], (200, 8, 8, 1)).astype(np.uint8)
  classifiers = []
  for true_labels in (labels, 1 - labels):
    source = sources.ArraySource(images, true_labels, 'array', num_classes=2)
    classifiers.append(modes.load_classifier(source, log=lambda text: None))
    np.testing.assert_array_equal(modes.classify(classifiers[-1].params, images, 2, stacked=False)['mode'], true_labels)
    reference = image_sets.dataset_images(source, DIGITS)
    Evaluator(
        ('modes',), reference, sharding.make_mesh(), 200, 200, (classifiers[-1], False), log=lambda text: None
    ).evaluate(reference)
  assert reference.fingerprint == image_sets.compress_jpeg(reference).fingerprint == ''
  assert classifiers[0].fingerprint != classifiers[1].fingerprint and not (tmp_path / 'cache').exists()


def test_an_unusable_cache_is_not_an_error(tmp_path, monkeypatch):
  """First a file in place of the folder: one message each for classifier and statistics. Then empty files."""
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(modes, '_STEPS', 50)
  labels = np.arange(200) // 100
  images = np.broadcast_to(200 * labels[:, None, None, None], (200, 8, 8, 1)).astype(np.uint8)
  source = sources.ArraySource(images, labels, 'array', num_classes=2)
  source.checksum = 'known'
  reference = image_sets.dataset_images(source, DIGITS)

  def measure(messages):
    model = modes.load_classifier(source, messages.append)
    return Evaluator(
        ('modes',), reference, sharding.make_mesh(), 200, 200, (model, False), log=messages.append).evaluate(reference)

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  expected = measure(messages := [])
  reasons = [text for text in messages if 'cannot be cached (Not a directory); the next run computes it again.' in text]
  assert len(reasons) == 2 and 'classifiers' in reasons[0] and 'statistics' in reasons[1]
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  assert measure([]) == expected
  cached_files = [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]
  assert len(cached_files) == 2
  for path in cached_files:
    path.write_bytes(b'')
  assert measure([]) == expected and all(path.stat().st_size for path in cached_files)


def test_unlearnable_or_missing_labels_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(modes, '_STEPS', 5)
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (300, 8, 8, 1), np.uint8), rng.integers(0, 10, 300)
  with pytest.raises(modes.ClassifierError, match=r'the classifier has accuracy .*% on 30 held-out .* 97% is'):
    modes.load_classifier(sources.ArraySource(images, labels, 'noise', num_classes=10))
  with pytest.raises(modes.ClassifierError, match='50% is required to judge labels'):
    modes.load_classifier(sources.ArraySource(images, labels, 'noise', num_classes=10), required=0.5)
  with pytest.raises(modes.ClassifierError, match='noise has no labels; use labelled data'):
    modes.load_classifier(sources.ArraySource(images, None, 'noise'))


def test_count_modes():
  assert modes.count_modes(np.arange(1000), 1000) == (1000, pytest.approx(0, abs=1e-12))
  assert modes.count_modes(np.zeros(50, int), 1000) == (1, pytest.approx(np.log(1000)))
  found, kl = modes.count_modes(np.array([0, 0, 0, 1]), 4)
  assert found == 2 and kl == pytest.approx(0.75 * np.log(0.75 * 4) + 0.25 * np.log(0.25 * 4))


def test_the_kl_of_a_perfect_sampler_in_closed_form():
  labels = np.random.default_rng(0).integers(0, 1000, 20_000)
  assert modes.count_modes(labels, 1000)[1] == pytest.approx(999 / 40_000, rel=0.1)
