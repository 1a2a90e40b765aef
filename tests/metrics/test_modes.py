"""The classifier that counts modes: what it reads, that it is kept, and what it refuses."""

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


def test_reads_digits_that_it_has_never_seen(classifier):
  found, _ = classifier
  test = sources.load_source(DataConfig(image_size=8, num_channels=1, split='test'))
  images, labels = test.gather(np.arange(len(test)))
  right = np.mean(np.asarray(modes.classify(found.params, images, 10, stacked=False)['mode']) == labels)
  assert right >= modes.REQUIRED_ACCURACY and len(labels) == 299
  assert found.accuracy >= modes.REQUIRED_ACCURACY and found.num_held_out == 150


def test_a_stack_is_its_channels(classifier):
  """Label 100a + 10b + c, and the channels' features side by side."""
  found, source = classifier
  images, labels = source.gather(np.arange(30))
  single = modes.classify(found.params, images, 10, stacked=False)
  stacks = np.concatenate([images[:10], images[10:20], images[20:]], axis=-1)
  stacked = modes.classify(found.params, stacks, 10, stacked=True)
  a, b, c = np.asarray(single['mode']).reshape(3, 10)
  np.testing.assert_array_equal(stacked['mode'], 100 * a + 10 * b + c)
  np.testing.assert_allclose(
      stacked['features'], np.moveaxis(np.asarray(single['features']).reshape(3, 10, -1), 0, 1).reshape(10, -1),
      rtol=1e-5, atol=1e-5)


def test_noise_has_modes_but_not_with_certainty(classifier):
  found, source = classifier
  stacks = image_sets.dataset_images(source, DataConfig(image_size=8, num_channels=3, stack=3))
  evaluator = Evaluator(
      ('modes',), stacks, sharding.make_mesh(jax.devices()[:1]), 500, 500, (found, True), log=lambda text: None)
  noise = np.random.default_rng(0).normal(60, 40, (500, 8, 8, 3)).clip(0, 255).astype(np.uint8)
  of_noise, of_data = (
      evaluator.evaluate(images)['metrics'] for images in (image_sets.array_images(noise, 'noise'), stacks))
  assert of_noise['modes']['value'] > 10 * of_noise['modes_certain']['value']
  assert 0.95 * of_data['modes']['value'] < of_data['modes_certain']['value'] <= of_data['modes']['value']
  for name in ('modes', 'modes_certain'):
    assert of_data[name]['value'] == of_noise[name]['of_reference'] and of_noise[name]['out_of'] == 1000


def test_data_sorted_by_class_are_sampled_from_all_classes(classifier, monkeypatch):
  """Folders of classes are sorted: 500 of 1,498 digits, as reference and as images, have all ten classes."""
  found, source = classifier
  monkeypatch.setattr(vgg, 'load', lambda path, allow_any: {})
  monkeypatch.setattr(vgg, 'features', lambda params, images: images.reshape(len(images), -1).astype(np.float32))
  images, labels = source.gather(np.arange(len(source)))
  by_class = sources.ArraySource(images[np.argsort(labels)], np.sort(labels), 'sorted', num_classes=10)
  evaluator = Evaluator(
      ('modes', 'pr', 'dc'), image_sets.dataset_images(by_class, DIGITS), sharding.make_mesh(), 500, 96, (found, False),
      log=lambda text: None)
  shuffled = images[np.random.default_rng(0).permutation(len(images))[:500]]
  metrics = evaluator.evaluate(image_sets.array_images(shuffled, 'shuffled'))['metrics']
  assert metrics['modes']['of_reference'] == 10 and metrics['mode_kl']['of_reference'] < 0.03
  assert metrics['precision']['value'] > 0.85 and metrics['coverage']['value'] > 0.95
  metrics = evaluator.evaluate(image_sets.dataset_images(by_class, DIGITS))['metrics']
  assert metrics['modes']['value'] == 10 and metrics['mode_kl']['value'] < 0.03


def test_kept_for_the_next_time(classifier, monkeypatch):
  found, source = classifier
  monkeypatch.setattr(modes, '_train', lambda *_: pytest.fail('trained again'))
  said = []
  again = modes.load_classifier(source, said.append)
  jax.tree.map(np.testing.assert_array_equal, found.params, again.params)
  assert said == [f'The classifier of digits has accuracy {found.accuracy:.1%} on 150 held-out images.']


def test_data_without_a_checksum_are_never_cached(tmp_path, monkeypatch):
  """Two arrays of one shape: each has a classifier and a fingerprint of its own, and no statistics are kept."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(modes, '_STEPS', 50)
  labels = np.arange(200) // 100
  images = np.broadcast_to(200 * labels[:, None, None, None], (200, 8, 8, 1)).astype(np.uint8)
  classifiers = []
  for known in (labels, 1 - labels):
    source = sources.ArraySource(images, known, 'array', num_classes=2)
    classifiers.append(modes.load_classifier(source, log=lambda text: None))
    np.testing.assert_array_equal(modes.classify(classifiers[-1].params, images, 2, stacked=False)['mode'], known)
    reference = image_sets.dataset_images(source, DIGITS)
    Evaluator(
        ('modes',), reference, sharding.make_mesh(), 200, 200, (classifiers[-1], False), log=lambda text: None
    ).evaluate(reference)
  assert reference.fingerprint == image_sets.compress_jpeg(reference).fingerprint == ''
  assert classifiers[0].fingerprint != classifiers[1].fingerprint and not (tmp_path / 'cache').exists()


def test_a_cache_that_cannot_be_used_is_no_error(tmp_path, monkeypatch):
  """A file in the folder's place: one sentence for the classifier and one for the statistics. Then an empty file."""
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(modes, '_STEPS', 50)
  labels = np.arange(200) // 100
  images = np.broadcast_to(200 * labels[:, None, None, None], (200, 8, 8, 1)).astype(np.uint8)
  source = sources.ArraySource(images, labels, 'array', num_classes=2)
  source.checksum = 'known'
  reference = image_sets.dataset_images(source, DIGITS)

  def measure(said):
    found = modes.load_classifier(source, said.append)
    return Evaluator(
        ('modes',), reference, sharding.make_mesh(), 200, 200, (found, False), log=said.append).evaluate(reference)

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  expected = measure(said := [])
  reasons = [text for text in said if 'cannot be cached (Not a directory); the next run computes it again.' in text]
  assert len(reasons) == 2 and 'classifiers' in reasons[0] and 'statistics' in reasons[1]
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  assert measure([]) == expected
  kept = [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]
  assert len(kept) == 2
  for path in kept:
    path.write_bytes(b'')
  assert measure([]) == expected and all(path.stat().st_size for path in kept)


def test_labels_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(modes, '_STEPS', 5)
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (300, 8, 8, 1), np.uint8), rng.integers(0, 10, 300)
  with pytest.raises(modes.ClassifierError, match=r'the classifier has accuracy .*% on 30 held-out .* 97% is'):
    modes.load_classifier(sources.ArraySource(images, labels, 'noise', num_classes=10))
  with pytest.raises(modes.ClassifierError, match='noise has no labels; use labelled data to count modes'):
    modes.load_classifier(sources.ArraySource(images, None, 'noise'))


def test_count_modes():
  assert modes.count_modes(np.arange(1000), 1000) == (1000, pytest.approx(0, abs=1e-12))
  assert modes.count_modes(np.zeros(50, int), 1000) == (1, pytest.approx(np.log(1000)))
  found, kl = modes.count_modes(np.array([0, 0, 0, 1]), 4)
  assert found == 2 and kl == pytest.approx(0.75 * np.log(0.75 * 4) + 0.25 * np.log(0.25 * 4))


def test_a_perfect_sampler_has_the_kl_of_its_n():
  labels = np.random.default_rng(0).integers(0, 1000, 20_000)
  assert modes.count_modes(labels, 1000)[1] == pytest.approx(999 / 40_000, rel=0.1)
