"""Evaluation of image sets: independence of batches and devices, and every error."""

import dataclasses
import json
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from ddgan_jax.config import ConfigError, DataConfig, UserError
from ddgan_jax.config.checks import METRICS
from ddgan_jax.data import sources
from ddgan_jax.data.readers import DataError
from ddgan_jax.metrics import image_sets, networks, reports, statistics
from ddgan_jax.metrics.evaluator import Evaluator
from ddgan_jax.metrics.features import dinov2, inception
from ddgan_jax.parallel import sharding
from tests.support import little_memory


@pytest.fixture(autouse=True)
def small_inception(monkeypatch, tmp_path):
  """Twelve random features in place of the network, which has its own tests."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  params = {'kernel': np.random.default_rng(0).standard_normal((64, 12), np.float32)}

  def features(params, images):
    x = images.reshape(len(images), -1)[:, :64].astype(jnp.float32) / 255
    return jnp.tanh(x @ params['kernel']), x @ params['kernel']

  monkeypatch.setattr(inception, 'load', lambda path, allow_any: params)
  monkeypatch.setattr(inception, 'features', features)
  monkeypatch.setattr(inception, 'clean_features', lambda params, images: features(params, images)[0] * 2 + 1)
  return lambda images: np.asarray(features(params, images)[0], np.float64)


@pytest.fixture
def small_dinov2(monkeypatch):
  """Eight random features in place of DINOv2; returns the models that were loaded, and the function."""
  params, loaded = {'kernel': np.random.default_rng(2).standard_normal((64, 8), np.float32)}, []

  def load(path, allow_any, model):
    loaded.append(model)
    return params

  read = lambda params, images: images.reshape(len(images), -1).astype(jnp.float32) / 255 @ params['kernel']
  monkeypatch.setattr(dinov2, 'load', load)
  monkeypatch.setattr(dinov2, 'features', read)
  return loaded, lambda images: np.asarray(read(params, images))


def pictures(seed, count=150):
  rng = np.random.default_rng(seed)
  return rng.integers(0, rng.integers(128, 256, (count, 1, 1, 1)), (count, 8, 8, 1)).astype(np.uint8)


def fid(mesh, batch_size, images, reference, **changes):
  evaluator = Evaluator(('fid', 'is'), reference, mesh, 10_000, batch_size, log=lambda text: None)
  return evaluator.evaluate(images)['metrics']


def test_fid_of_arrays(small_inception):
  """The Fréchet distance of the features, by scipy's sqrtm, for any batches and devices."""
  ours, others = pictures(0), pictures(1, 97)
  a, b = small_inception(ours), small_inception(others)
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
      cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
  found = []
  for devices, batch_size in ((1, 7), (1, 64), (8, 64), (4, 1000)):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    metrics = fid(mesh, batch_size, image_sets.array_images(ours, 'ours'), image_sets.array_images(others, 'others'))
    found.append((metrics['fid']['value'], metrics['is']['value']))
  np.testing.assert_allclose(found[0][0], expected, rtol=1e-5)
  np.testing.assert_allclose(found, [found[0]] * 4, rtol=1e-6)


def test_the_report_describes_its_inputs():
  images, reference = image_sets.array_images(pictures(0), 'ours'), image_sets.array_images(pictures(1, 97), 'others')
  report = Evaluator(
      ('fid',), reference, sharding.make_mesh(), 100, 32, log=lambda text: None).evaluate(images)
  assert (report['n'], report['n_reference'], report['biased']) == (100, 97, True)
  text = reports.table(report)
  assert text.startswith('ours: n = 100; reference others, n = 97\n') and '[FID Inception]' in text
  assert 'Biased: fewer than 10,000 images.' in text
  assert json.loads(json.dumps(report)) == report


def test_the_report_has_the_splits_of_the_inception_score():
  """More splits than samples are refused before any image is read."""
  images = image_sets.array_images(pictures(0), 'ours')
  measured = [
      Evaluator(('is',), None, sharding.make_mesh(), 100, 32, splits=splits).evaluate(images)
      for splits in (10, 1)]
  ten, one = (report['metrics']['is'] for report in measured)
  assert (ten['splits'], one['splits'], one['deviation']) == (10, 1, 0) and ten['value'] < one['value']
  assert '(splits: 10)' in reports.table(measured[0]) and '(splits: 1)' in reports.table(measured[1])
  unread = images._replace(rows=lambda first, count: pytest.fail('read'), take=lambda numbers: pytest.fail('read'))
  with pytest.raises(UserError, match='splits is 101; use 1 … 100, the number of samples'):
    Evaluator(('is',), None, sharding.make_mesh(), 100, 32, splits=101).evaluate(unread)


def test_jpeg_compression_applies_to_both_sides():
  images = image_sets.array_images(pictures(0), 'ours')
  jpeg = image_sets.compress_jpeg(images)
  assert jpeg.rows(0, 8).shape == (8, 8, 8, 1) and (jpeg.rows(0, 8) != images.rows(0, 8)).any()
  mesh = sharding.make_mesh()
  assert abs(fid(mesh, 64, jpeg, jpeg)['fid']['value']) < 1e-9 < 1e-4 < fid(mesh, 64, jpeg, images)['fid']['value']


def test_data_statistics_are_cached_and_written(tmp_path):
  source = sources.load_source(DataConfig(image_size=8, num_channels=1))
  reference = image_sets.dataset_images(source, DataConfig(image_size=8, num_channels=1))
  messages = []
  for _ in range(2):
    evaluator = Evaluator(('fid',), reference, sharding.make_mesh(), 100, 500, log=messages.append)
    found = evaluator.reference_statistics()
  assert messages == ['Computing features of 1,498 images of digits (FID Inception), once.'] and found.count == 1498
  statistics.write(tmp_path / 'digits.npz', found)
  restored = statistics.read(str(tmp_path / 'digits.npz'), 12)
  np.testing.assert_array_equal(restored.covariance, found.covariance)
  assert restored.count == 1498
  images = image_sets.array_images(source.gather(np.arange(1498))[0], 'the same')
  from_file = Evaluator(('fid',), restored, sharding.make_mesh(), 2000, 500).evaluate(images)
  assert abs(from_file['metrics']['fid']['value']) < 1e-6
  changed = restored._replace(mean=restored.mean + 1)
  other = Evaluator(('fid',), changed, sharding.make_mesh(), 2000, 500).evaluate(images)
  assert other['reference'] == from_file['reference'] and other['reference_digest'] != from_file['reference_digest']


def test_a_full_disk_leaves_nothing_behind(tmp_path):
  """A limit of 1,000 bytes per file. A failed write to the cache is only reported; a failed file of the user raises."""
  messages, found = [], statistics.Statistics('digits', np.arange(12.0), np.eye(12), 10)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError, match='File too large'):
      statistics.write(tmp_path / 'mine' / 'digits.npz', found)
    assert not os.listdir(tmp_path / 'mine')
    statistics.store('key', found, messages.append)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert len(messages) == 1 and 'cannot be cached (File too large); the next run computes it again' in messages[0]
  assert statistics.load_cached('key') is None
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_published_files_are_read(tmp_path):
  mean, covariance = np.arange(12.0), np.eye(12)
  np.save(tmp_path / 'dict.npy', {'mu': mean, 'sigma': covariance})
  np.savez(tmp_path / 'plain.npz', mu=mean, sigma=covariance)
  for name in ('dict.npy', 'plain.npz'):
    found = statistics.read(str(tmp_path / name), 12)
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.covariance, covariance)
    assert found.count is None
  asymmetric = np.arange(144.0).reshape(12, 12)
  np.save(tmp_path / 'other.npy', {
      'mu': mean.astype('>f4'), 'sigma': asymmetric.T, 'n': np.int64(7), 'name': np.array('x'), 'o': np.array([None])})
  found = statistics.read(str(tmp_path / 'other.npy'), 12)
  np.testing.assert_array_equal(found.mean, mean)
  np.testing.assert_array_equal(found.covariance, asymmetric.T)
  assert found.count == 7


class _Malicious:
  def __reduce__(self):
    return os.system, ('touch /tmp/should_not_exist',)


def test_invalid_statistics_files_are_refused(tmp_path):
  np.savez(tmp_path / 'small.npz', mu=np.zeros(3), sigma=np.eye(3))
  np.savez(tmp_path / 'other.npz', images=np.zeros(3))
  np.save(tmp_path / 'array.npy', np.zeros(3))
  np.save(tmp_path / 'evil.npy', {'mu': _Malicious()})
  np.savez(tmp_path / 'nan.npz', mu=np.full(12, np.nan), sigma=np.eye(12))
  (tmp_path / 'torn.npz').write_bytes((tmp_path / 'small.npz').read_bytes()[:100])
  for name, message in (
      ('none.npz', 'does not exist; use an .npz or .npy with mu and sigma'),
      ('small.npz', r'mu is \[3\] and sigma \[3, 3\]; use \[12\] and \[12, 12\]'),
      ('other.npz', 'has no readable mu and sigma'),
      ('array.npy', r'has no readable mu and sigma .*it is an array float64\[3\]'),
      ('evil.npy', r'it refers to posix.system, which arrays do not need'),
      ('nan.npz', 'mu or sigma contains NaN'),
      ('torn.npz', 'has no readable mu and sigma')):
    with pytest.raises(statistics.StatisticsError, match=f'{name}:? .*{message}'):
      statistics.read(str(tmp_path / name), 12)


@dataclasses.dataclass
class _Pickled:
  state: tuple

  def __reduce__(self):
    return self.state


def test_object_arrays_with_forged_pointers_are_refused(tmp_path):
  """Object arrays whose pointers are the file's bytes, or that are longer than their list."""
  pointer, rebuild = b'A' * 8, np.zeros(0).__reduce__()[0]
  pickled = [_Pickled((np.ndarray, ((1,), np.dtype('O'), pointer)))]
  for flags in (0, 1):  # without the flags of objects; counted, but not pickled as a list
    dtype = _Pickled((np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, flags)))
    pickled.append(_Pickled((rebuild, (np.ndarray, (0,), b'b'), (1, (1,), dtype, False, pointer))))
  pickled.append(_Pickled((rebuild, (np.ndarray, (0,), b'b'), (1, (2**20,), np.dtype('O'), False, [1]))))
  for value in pickled:
    for name in ('mu', 'sigma', 'n', 'other'):
      good = {'mu': np.zeros(12), 'sigma': np.eye(12)}
      np.save(tmp_path / 'x.npy', {**good, name: value}, allow_pickle=True)
      if name == 'other':  # never converted to an array
        assert statistics.read(str(tmp_path / 'x.npy'), 12).count is None
      else:
        with pytest.raises(statistics.StatisticsError, match='x.npy has no readable mu and sigma'):
          statistics.read(str(tmp_path / 'x.npy'), 12)


def test_damaged_references_are_refused_in_one_sentence(tmp_path):
  np.savez(tmp_path / 'x.npz', mu=np.zeros(3))
  content = (tmp_path / 'x.npz').read_bytes()
  position = content.rindex(b'PK\1\2')
  for place, byte in ((position, b'X'), (position + 6, b'\x63')):  # no entry there, and one of a future version
    (tmp_path / 'x.npz').write_bytes(content[:place] + byte + content[place + 1:])
    with pytest.raises(statistics.StatisticsError, match='x.npz has no readable mu and sigma'):
      image_sets.read_reference(str(tmp_path / 'x.npz'), 3)


def test_unused_arrays_of_a_file_are_not_read(tmp_path):
  np.savez_compressed(tmp_path / 'extra.npz', mu=np.zeros(12), sigma=np.eye(12), features=np.zeros(2**23))
  with little_memory():
    assert statistics.read(str(tmp_path / 'extra.npz'), 12).mean.shape == (12,)


def test_images_are_read_from_files(tmp_path):
  images = pictures(0, 5)
  (tmp_path / 'folder').mkdir()
  for i, image in enumerate(images):
    Image.fromarray(image[..., 0]).save(tmp_path / 'folder' / f'{i}.png')
  np.savez(tmp_path / 'images.npz', images=images)
  fingerprints = set()
  for name in ('folder', 'images.npz'):
    for num_channels in (1, 3):
      found = image_sets.file_images(str(tmp_path / name), num_channels)
      assert found.size == 5 and found.shape == (8, 8, num_channels)
      np.testing.assert_array_equal(found.rows(0, 5), images.repeat(num_channels, axis=-1))
      fingerprints.add(found.fingerprint)
  assert len(fingerprints) == 2 and '' not in fingerprints  # one for each number of channels


def test_colours_do_not_depend_on_the_first_file(tmp_path):
  """Palettes (PNG, GIF) are read as RGB, and so is a folder whose first file is grey; grey files become grey RGB."""
  colours = np.random.default_rng(0).integers(0, 8, (4, 8, 8, 3), np.uint8) * 32
  for name, ending in (('palette', 'png'), ('gif', 'gif'), ('mixed', 'png')):
    (tmp_path / name).mkdir()
    expected = []
    for i, pixels in enumerate(colours):
      image = Image.fromarray(pixels)
      image = image.convert('L') if (name, i) == ('mixed', 0) else image if name == 'mixed' else image.quantize(64)
      image.save(tmp_path / name / f'{i}.{ending}')
      expected.append(np.asarray(image.convert('RGB')))
    found = image_sets.file_images(str(tmp_path / name))
    assert found.shape == (8, 8, 3)
    np.testing.assert_array_equal(found.rows(0, 4), expected)


def test_grey_images_are_repeated_to_rgb():
  """The inputs of Inception and VGG16 are bit-identical, also after JPEG compression."""
  grey = image_sets.array_images(pictures(0, 8), 'grey')
  rgb = image_sets.array_images(pictures(0, 8).repeat(3, axis=-1), 'rgb')
  for change in (lambda images: images, image_sets.compress_jpeg):
    one, three = (jax.jit(inception.resize, static_argnums=1)(change(images).rows(0, 8), 32) for images in (grey, rgb))
    np.testing.assert_array_equal(one, three)


def test_the_size_is_that_of_the_upright_image(tmp_path):
  """EXIF may rotate an image, so that its stored height is its width."""
  exif = Image.Exif()
  exif[0x0112] = 6
  (tmp_path / 'turned').mkdir()
  Image.new('RGB', (8, 6)).save(tmp_path / 'turned' / 'a.png', exif=exif)
  with pytest.raises(DataError, match='a.png is 8x6; use square'):
    image_sets.file_images(str(tmp_path / 'turned'))


def test_invalid_image_sets_are_refused(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DataError, match=r'^\S+empty contains no image'):
    image_sets.file_images(str(tmp_path / 'empty'))
  with pytest.raises(DataError, match=r'^\S+nothing.npz does not exist'):
    image_sets.file_images(str(tmp_path / 'nothing.npz'))
  (tmp_path / 'oblong').mkdir()
  Image.new('L', (8, 6)).save(tmp_path / 'oblong' / 'a.png')
  with pytest.raises(DataError, match='a.png is 6x8; use square'):
    image_sets.file_images(str(tmp_path / 'oblong'))
  evaluator = Evaluator(('fid',), image_sets.array_images(pictures(0), 'ours'), sharding.make_mesh(), 100, 8)
  with pytest.raises(ConfigError, match='grey 16 has images of 16x16x1, but ours has 8x8x1; use'):
    evaluator.evaluate(image_sets.array_images(np.zeros((20, 16, 16, 1), np.uint8), 'grey 16'))


@pytest.mark.parametrize('metrics, reference, message', [
    (('fid',), None, 'fid: no reference; set --workdir, --config or --reference'),
    (('fid', 'kid'), 'statistics', '^kid: file only has a mean and a covariance; use images'),
    (('modes',), 'images', 'modes: no labelled data; set --workdir or --config'),
    (('sfid',), 'images', "metrics is 'sfid'; use one of 'fid', 'is', 'kid'"),
])
def test_metrics_that_cannot_be_computed_are_refused(metrics, reference, message):
  reference = {
      None: None, 'images': image_sets.array_images(pictures(0), 'ours'),
      'statistics': statistics.Statistics('file', np.zeros(12), np.eye(12), None)}[reference]
  with pytest.raises(ConfigError, match=message):
    Evaluator(metrics, reference, sharding.make_mesh(), 100, 8)


def test_the_inception_score_ignores_reference_statistics():
  """The report names them as the reference, but the score does not need them."""
  reference = statistics.Statistics('file', np.zeros(12), np.eye(12), None)
  images = image_sets.array_images(pictures(0), 'ours')
  report = Evaluator(('is',), reference, sharding.make_mesh(), 100, 8).evaluate(images)
  assert report['reference'] == 'file' and set(report['metrics']) == {'is'}


def test_the_table_shows_counts_as_integers():
  entry = {'value': 998, 'out_of': 1000, 'of_reference': 1000, 'n_reference': 2000, 'features': 'x'}
  report = {
      'images': 'a', 'n': 2000, 'reference': None, 'n_reference': None, 'biased': False, 'metrics': {'modes': entry}}
  assert '998 of 1,000  (reference: 1,000, n = 2,000)' in reports.table(report)


def test_stacks_are_addressed_by_index():
  """Fixed stacks are those that training draws; the endless sequence does not depend on the batch size."""
  source = sources.load_source(DataConfig(image_size=8, num_channels=1))
  fixed = DataConfig(image_size=8, num_channels=3, stack=3, num_stacks=50)
  found = image_sets.dataset_images(source, fixed)
  assert found.size == 50 and found.rows(0, 50).shape == (50, 8, 8, 3)
  endless = image_sets.dataset_images(source, dataclasses.replace(fixed, num_stacks=0))
  assert endless.size is None
  np.testing.assert_array_equal(
      np.concatenate([endless.rows(0, 16), endless.rows(16, 16)]), endless.rows(0, 32))
  assert len(np.unique(endless.rows(0, 1498)[..., 0].reshape(1498, -1), axis=0)) > 1400  # each digit once per epoch


@pytest.mark.parametrize('num', [60, 97])
def test_each_image_is_read_once_for_all_networks(monkeypatch, num):
  """Samples are drawn once for Inception and VGG16; all reference images are read once, and a subset once more."""
  from ddgan_jax.metrics.features import vgg

  monkeypatch.setattr(vgg, 'load', lambda path, allow_any: {})
  monkeypatch.setattr(vgg, 'features', lambda params, images: images.reshape(len(images), -1).astype(jnp.float32))
  pixels, source = pictures(0), sources.ArraySource(pictures(1, 97))
  drawn, read, gather = [], [], source.gather
  monkeypatch.setattr(source, 'gather', lambda numbers: (read.extend(numbers), gather(numbers))[1])
  images = image_sets.ImageSet(
      'ours', '', None, (8, 8, 1), lambda first, count: (drawn.append(count), pixels[first:first + count])[1])
  reference = image_sets.dataset_images(source, DataConfig(image_size=8, num_channels=1))

  def evaluate(*metrics):
    return Evaluator(
        metrics, reference, sharding.make_mesh(), num, 8, log=lambda text: None).evaluate(images)['metrics']

  all_metrics = evaluate('fid', 'is', 'kid', 'pr', 'dc')
  assert sum(drawn) == -(-num // 8) * 8
  assert len(read) == 104 + (64 if num < 97 else 0)  # whole batches
  assert all_metrics == evaluate('fid', 'is') | evaluate('kid') | evaluate('pr', 'dc')


def test_a_subset_depends_only_on_its_size(monkeypatch):
  """The same indices in every process, batch and version of NumPy, with their labels."""
  images = image_sets.array_images(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), 'numbers')
  images = images._replace(fingerprint='known', requested_labels=lambda num: np.arange(num, dtype=np.int32))
  chosen = image_sets.subset(images, 6)
  expected = [33, 65, 68, 86, 94, 99]
  assert chosen.rows(0, 8).ravel().tolist() == [*expected, 99, 99] and chosen.size == 6
  assert chosen.requested_labels(5).tolist() == expected[:5]
  assert chosen.fingerprint == 'known subset 6' and image_sets.subset(images, 7).fingerprint != chosen.fingerprint
  assert image_sets.subset(images, 100) is images and image_sets.subset(images._replace(size=None), 6).size is None
  jpeg = image_sets.subset(image_sets.compress_jpeg(images), 6)
  np.testing.assert_array_equal(jpeg.rows(0, 6), image_sets.compress_jpeg(chosen).rows(0, 6))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  parts = []
  for index in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    parts.append(chosen.rows(0, 6).ravel())
  assert np.concatenate(parts).tolist() == expected


def test_authenticity(small_dinov2):
  """It equals its function of the features, on one device and on four; the closest samples are copies."""
  from ddgan_jax.metrics import memorization

  _, read = small_dinov2
  train, held_out = pictures(1, 97), pictures(2, 30)
  ours = np.concatenate([pictures(0, 40), train[[5, 50]]])
  for devices in (1, 4):
    evaluator = Evaluator(
        ('authenticity_dinov2',), image_sets.array_images(train, 'train'), sharding.make_mesh(jax.devices()[:devices]),
        10_000, 16, log=lambda text: None, dinov2_model='vitb14',
        held_out=image_sets.array_images(held_out, 'held out'), num_closest=2)
    entry = evaluator.evaluate(image_sets.array_images(ours, 'ours'))['metrics']['authenticity_dinov2']
    of = {name: memorization.authenticity(np.asarray(read(train)), np.asarray(read(images))).fraction
          for name, images in (('ours', ours), ('held out', held_out))}
    assert entry['value'] == of['ours'] and entry['of_held_out'] == of['held out']
    assert (entry['n_reference'], entry['n_held_out']) == (97, 30)
    for closest in evaluator.closest:
      np.testing.assert_array_equal(closest, train[[5, 50]])
  endless = image_sets.array_images(train, 'stacks')._replace(size=None)
  with pytest.raises(ConfigError, match='authenticity_dinov2: stacks has no last image'):
    Evaluator(('authenticity_dinov2',), endless, sharding.make_mesh(), 100, 16)


def test_all_processes_use_the_networks_in_the_same_order():
  """Or collective operations of different networks would meet."""
  found = list(networks.rows(METRICS))
  assert found == sorted(found) == ['classifier', 'dinov2', 'inception', 'inception_clean', 'vgg16']


def test_metrics_equal_their_functions_of_the_features(small_inception, monkeypatch):
  """They equal the functions of the features; pr, dc and mind use as many reference images as samples."""
  from ddgan_jax.metrics import kid, mind, precision_recall
  from ddgan_jax.metrics.features import vgg

  params = {'kernel': np.random.default_rng(1).standard_normal((64, 8), np.float32)}
  read = lambda params, images: images.reshape(len(images), -1).astype(jnp.float32) / 255 @ params['kernel']
  monkeypatch.setattr(vgg, 'load', lambda path, allow_any: params)
  monkeypatch.setattr(vgg, 'features', read)
  ours, others = pictures(0, 60), pictures(1, 97)
  evaluator = Evaluator(
      ('kid', 'pr', 'dc', 'fid', 'mind'), image_sets.array_images(others, 'others'), sharding.make_mesh(), 10_000, 16,
      log=lambda text: None)
  metrics = evaluator.evaluate(image_sets.array_images(ours, 'ours'))['metrics']
  value, deviation = kid.kernel_distance(*(small_inception(x).astype(np.float32) for x in (others, ours)))
  assert metrics['kid']['value'] == pytest.approx(value, rel=1e-4)
  assert metrics['kid']['deviation'] == pytest.approx(deviation, rel=1e-3, abs=1e-6)
  chosen = image_sets.subset(image_sets.array_images(others, 'others'), 60).rows(0, 60)
  real, fake = (np.asarray(read(params, x)) for x in (chosen, ours))
  for names, function in ((('precision', 'recall'), precision_recall.precision_recall),
                          (('density', 'coverage'), precision_recall.density_coverage)):
    for name, value in zip(names, function(real, fake)):
      assert metrics[name]['value'] == pytest.approx(value) and metrics[name]['n_reference'] == 60
  assert metrics['recall']['value'] != metrics['precision']['value']
  pooled = (small_inception(x).astype(np.float32) for x in (chosen, ours))
  assert metrics['mind']['value'] == pytest.approx(mind.monge_distance(*pooled), rel=1e-4)
  assert metrics['mind']['n_reference'] == 60


def test_metrics_of_dinov2_and_clean_fid(small_inception, small_dinov2):
  """They equal their functions of the features, on one device and on eight, with and without the cache."""
  from ddgan_jax.metrics import frechet, precision_recall

  loaded, read = small_dinov2
  ours, others = pictures(0, 60), pictures(1, 97)
  reference = image_sets.array_images(others, 'others')._replace(fingerprint='others')
  messages, found = [], []
  for devices in (1, 8):
    evaluator = Evaluator(
        ('fd_dinov2', 'pr_dinov2', 'dc_dinov2', 'fid', 'fid_clean', 'mind', 'mind_dinov2'), reference,
        sharding.make_mesh(jax.devices()[:devices]), 10_000, 16, log=messages.append, dinov2_model='vitb14')
    found.append(evaluator.evaluate(image_sets.array_images(ours, 'ours'))['metrics'])
  assert loaded == ['vitb14'] * 2
  names = 'DINOv2 vitb14 and FID Inception and FID Inception, clean-fid'
  assert messages == [f'Computing features of 97 images of others ({names}), once.']
  one, eight = found
  assert one.keys() == eight.keys() == {
      'fd_dinov2', 'precision_dinov2', 'recall_dinov2', 'density_dinov2', 'coverage_dinov2', 'fid', 'fid_clean', 'mind',
      'mind_dinov2'}
  for name in one:
    assert one[name]['value'] == pytest.approx(eight[name]['value'], rel=1e-6)

  def distance(features):
    (mean, cov), (other_mean, other_cov) = (
        (x.mean(0), np.cov(x, rowvar=False)) for x in (np.asarray(features(images), np.float64)
                                                       for images in (ours, others)))
    return frechet.frechet_distance(mean, cov, other_mean, other_cov)

  assert one['fd_dinov2']['value'] == pytest.approx(distance(read), rel=1e-5)
  assert one['fid']['value'] == pytest.approx(distance(small_inception), rel=1e-5)
  assert one['fid_clean']['value'] == pytest.approx(distance(lambda x: small_inception(x) * 2 + 1), rel=1e-5)
  assert one['fid_clean']['features_digest'] != one['fid']['features_digest']
  assert {entry['features'] for name, entry in one.items() if 'dinov2' in name} == {'DINOv2 vitb14'}
  real, fake = read(image_sets.subset(reference, 60).rows(0, 60)), read(ours)
  for names, function in ((('precision', 'recall'), precision_recall.precision_recall),
                          (('density', 'coverage'), precision_recall.density_coverage)):
    for name, value in zip(names, function(real, fake, 5)):
      assert one[f'{name}_dinov2']['value'] == pytest.approx(value) and one[f'{name}_dinov2']['n_reference'] == 60
  assert one['precision_dinov2']['value'] != precision_recall.precision_recall(real, fake, 3)[0]


def test_moments_are_only_computed_for_metrics_that_compare_them(monkeypatch, small_dinov2):
  from ddgan_jax.metrics import frechet

  monkeypatch.setattr(frechet.Moments, 'add', lambda self, features: pytest.fail('computed'))
  reference = image_sets.array_images(pictures(1, 97), 'others')
  Evaluator(('is', 'kid', 'pr_dinov2'), reference, sharding.make_mesh(), 100, 32).evaluate(
      image_sets.array_images(pictures(0), 'ours'))


def test_files_of_statistics_name_their_features(tmp_path, small_dinov2):
  """Each metric reads its own file and refuses the others; a published file without a name is one of FID."""
  reference = image_sets.array_images(pictures(1), 'others')
  files = {}
  for metric, dimension, features in (
      ('fid', 12, 'FID Inception'), ('fid_clean', 12, 'FID Inception, clean-fid'), ('fd_dinov2', 8, 'DINOv2 vitl14')):
    found = Evaluator(
        (metric,), reference, sharding.make_mesh(), 100, 32, log=lambda text: None).reference_statistics()
    statistics.write(tmp_path / f'{metric}.npz', found)
    files[metric] = statistics.read(str(tmp_path / f'{metric}.npz'), dimension)
    assert files[metric].features == found.features == features
  np.savez(tmp_path / 'published.npz', mu=files['fid'].mean, sigma=files['fid'].covariance)
  files['published'] = statistics.read(str(tmp_path / 'published.npz'), 12)

  def measure(metric, file, model='vitl14'):
    evaluator = Evaluator((metric,), files[file], sharding.make_mesh(), 10_000, 32, dinov2_model=model)
    return evaluator.evaluate(image_sets.array_images(pictures(1), 'the same'))['metrics'][metric]['value']

  for metric, file in (('fid', 'fid'), ('fid', 'published'), ('fid_clean', 'fid_clean'), ('fd_dinov2', 'fd_dinov2')):
    assert abs(measure(metric, file)) < 1e-6
  for metric, file, found, expected in (
      ('fid', 'fid_clean', 'FID Inception, clean-fid', 'FID Inception'),
      ('fid_clean', 'fid', 'FID Inception', 'FID Inception, clean-fid'),
      ('fid_clean', 'published', 'FID Inception', 'FID Inception, clean-fid'),
      ('fd_dinov2', 'fid', 'FID Inception', 'DINOv2 vitl14'), ('fid', 'fd_dinov2', 'DINOv2 vitl14', 'FID Inception')):
    with pytest.raises(
        ConfigError, match=rf'^{metric}: \S+{file}.npz has statistics of {found}; use those of {expected}, or images'):
      measure(metric, file)
  with pytest.raises(ConfigError, match='has statistics of DINOv2 vitl14; use those of DINOv2 vitb14, or'):
    measure('fd_dinov2', 'fd_dinov2', 'vitb14')
  with pytest.raises(ConfigError, match='^pr_dinov2: .* mean and a covariance; .*, or the metric fd_dinov2'):
    measure('pr_dinov2', 'fd_dinov2')
  statistics.write(tmp_path / 'x.npz', files['fid']._replace(features='CLIP'))
  with pytest.raises(statistics.StatisticsError, match="x.npz: feature_name is 'CLIP'; use one of FID Inception, "):
    statistics.read(str(tmp_path / 'x.npz'), 12)
  statistics.write(tmp_path / 'x.npz', files['fd_dinov2'])
  with pytest.raises(statistics.StatisticsError, match=r'x.npz: mu is \[8\] and sigma \[8, 8\]; use \[1024\]'):
    statistics.read(str(tmp_path / 'x.npz'))
