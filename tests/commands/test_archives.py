"""TFDS catalogue sets, prepared from small archives in their original formats, and trained on.

The archives are placed where a user without network access would put them. TFDS checks their SHA-256, so each test
registers the checksum of its own archive.
"""

import gzip
import io
import struct
import tarfile
import zipfile

import lmdb
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddgan_jax import main as train
from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, sources
from ddgan_jax.data.readers import tfds_reader
from tests.support.commands import succeed

pytest.importorskip('tensorflow', reason='TFDS unpacks archives with TensorFlow')
RNG = np.random.default_rng(0)


def blobs(n, size, channels):
  """Coloured discs, [n, size, size, channels] uint8, so that a preview can be checked by eye."""
  y, x = np.mgrid[:size, :size]
  images = np.empty((n, size, size, channels), np.uint8)
  for image in images:
    cy, cx, r = RNG.integers(size // 4, 3 * size // 4, 2).tolist() + [size // 4]
    disc = (y - cy)**2 + (x - cx)**2 < r**2
    image[...] = np.where(disc[..., None], RNG.integers(128, 256, channels), RNG.integers(0, 128, channels))
  return images


def tar(files, mode='w'):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return file.getvalue()


def zipped(files):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return file.getvalue()


def encoded(image, kind='png', **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def cifar10():
  images, labels = blobs(24, 32, 3), RNG.integers(0, 10, 24, np.uint8)
  files = {f'cifar-10-batches-bin/data_batch_{i + 1}.bin': slice(4 * i, 4 * i + 4) for i in range(5)}
  files['cifar-10-batches-bin/test_batch.bin'] = slice(20, 24)
  contents = {name: b''.join(
      bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images[part], labels[part]))
              for name, part in files.items()}
  contents['cifar-10-batches-bin/batches.meta.txt'] = '\n'.join(f'class{i}' for i in range(10)).encode()
  return {'cifar-10-binary.tar.gz': tar(contents, 'w:gz')}, images[:20], labels[:20]


def mnist():
  images, labels = blobs(60, 28, 1), RNG.integers(0, 10, 60, np.uint8)

  def idx(array, magic):
    return gzip.compress(struct.pack(f'>{1 + array.ndim}i', magic, *array.shape) + array.tobytes())

  files = {}
  for name, part in (('train', slice(0, 50)), ('t10k', slice(50, 60))):
    files[f'{name}-images-idx3-ubyte.gz'] = idx(images[part, ..., 0], 0x803)
    files[f'{name}-labels-idx1-ubyte.gz'] = idx(labels[part], 0x801)
  return files, images[:50], labels[:50]


def celeb_a_hq():
  images = blobs(8, 256, 3)
  files = {f'imgHQ{i:05d}.png': encoded(image) for i, image in enumerate(images)}
  return {'data256x256.tar': tar(files)}, images, None


def imagenet_resized(size, parts):
  images, labels = blobs(12, size, 3), RNG.integers(0, 1000, 12)

  def npz(part):
    file = io.BytesIO()
    np.savez(file, data=images[part].transpose(0, 3, 1, 2).reshape(-1, 3 * size * size), labels=labels[part] + 1)
    return file.getvalue()

  train = np.split(np.arange(8), parts)
  names = ['train'] if parts == 1 else [f'train_part{k + 1}' for k in range(parts)]
  files = {f'Imagenet{size}_{name}_npz.zip': zipped({f'{name}.npz': npz(part)}) for name, part in zip(names, train)}
  files[f'Imagenet{size}_val_npz.zip'] = zipped({'val_data.npz': npz(np.arange(8, 12))})
  return files, images[:8], labels[:8]


def downsampled_imagenet():
  images = np.stack([np.full((32, 32, 3), RNG.integers(0, 256, 3), np.uint8) for _ in range(12)])  # survives JPEG
  jpegs = [encoded(image, 'jpeg', quality=100, subsampling=0) for image in images]
  files = {f'{split}_32x32.tar': tar({f'{split}_32x32/{i}.jpg': jpegs[i] for i in numbers})
           for split, numbers in (('train', range(8)), ('valid', range(8, 12)))}
  return files, np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs[:8]]), None


def check(source, config, images, labels):
  """Checks that one batch of the whole set has these images and labels in any order (TFDS shuffles on disk)."""
  assert len(source) == len(images) == config.batch_size
  batch = pipeline.global_batch(source, config, 0, 0)
  pixels = np.round((batch['image'] + 1) * 127.5).astype(np.uint8)
  read = sorted((image.tobytes(), int(label)) for image, label in zip(pixels, batch['label']))
  labels = np.zeros(len(images), int) if labels is None else labels
  assert read == sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


@pytest.fixture
def place(tmp_path, monkeypatch):
  """Puts a set's archives where TFDS looks for them, and registers their checksums."""
  for name in ('http_proxy', 'https_proxy'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # nothing listens there

  def place(name, files):
    from tensorflow_datasets.core.download import checksums

    manual = tmp_path / 'downloads' / 'manual'
    manual.mkdir(parents=True, exist_ok=True)
    url_infos = tfds.builder_cls(name.split('/')[0]).url_infos or {}
    for file, content in files.items():
      (manual / file).write_bytes(content)
      for url in list(url_infos):
        if url.endswith('/' + file):
          monkeypatch.setitem(url_infos, url, checksums.compute_url_info(manual / file))
    if name == 'mnist':
      from tensorflow_datasets.image_classification import mnist as module

      monkeypatch.setattr(module, '_TRAIN_EXAMPLES', 50)
      monkeypatch.setattr(module, '_TEST_EXAMPLES', 10)
    return {'data_dir': str(tmp_path), 'cache_dir': str(tmp_path / 'cache')}

  return place


@pytest.mark.parametrize('name, make, classes', [
    ('cifar10', cifar10, 10),
    ('mnist', mnist, 10),
    ('celeb_a_hq/256', celeb_a_hq, None),
    ('imagenet_resized/32x32', lambda: imagenet_resized(32, 1), 1000),
    ('imagenet_resized/64x64', lambda: imagenet_resized(64, 2), 1000),
    ('downsampled_imagenet/32x32', downsampled_imagenet, None),
])
def test_archives_are_read_end_to_end(place, name, make, classes):
  files, images, labels = make()
  size, channels = images.shape[2:]
  config = DataConfig(name=name, image_size=size, num_channels=channels, batch_size=len(images), **place(name, files))
  source = sources.load_source(config)
  assert source.num_classes == classes
  check(source, config, images, labels)


def test_a_damaged_archive_is_refused(place, tmp_path):
  files, _, _ = cifar10()
  fields = place('cifar10', files)
  (tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz').write_bytes(files['cifar-10-binary.tar.gz'][:-9])
  with pytest.raises(sources.DataError, match='could not be prepared.*NonMatchingChecksumError.*wrong checksum'):
    sources.load_source(DataConfig(name='cifar10', **fields))


def test_a_prepared_copy_of_lsun_is_read(tmp_path, monkeypatch):
  # TFDS reads LSUN's archives with a library that is no longer released, but a copy prepared elsewhere can be read.
  images = np.stack([np.full((32, 32, 3), 28 * i, np.uint8) for i in range(10)])  # grey survives JPEG
  jpegs = [io.BytesIO(encoded(image, 'jpeg', quality=100)) for image in images]
  lsun_cls = tfds.builder_cls('lsun')
  monkeypatch.setattr(lsun_cls, '_split_generators', lambda self, manager: {
      'train': ((i, {'id': f'{i}', 'image': jpeg}) for i, jpeg in enumerate(jpegs))})
  lsun_cls(config='church_outdoor', data_dir=tmp_path).download_and_prepare(file_format='array_record')
  config = DataConfig(
      name='lsun/church_outdoor', image_size=32, batch_size=10, data_dir=str(tmp_path), cache_dir=str(tmp_path / 'c'))
  check(sources.load_source(config), config, images, None)


@pytest.mark.parametrize('name', ['cifar10', 'mnist', 'celeb_a_hq/256', 'imagenet_resized/64x64', 'svhn_cropped'])
def test_any_tfds_set_with_images_is_read(name, tmp_path, monkeypatch):
  # TFDS's mock data have the right form, but neither a folder nor splits nor batched reads.
  monkeypatch.setattr(tfds_reader, 'is_prepared', lambda builder: True)
  open_records = tfds_reader._open_records

  class Examples:

    def __init__(self, records):
      self._records = records

    def __len__(self):
      return len(self._records)

    def __getitems__(self, keys):
      return [self._records[key] for key in keys]

  monkeypatch.setattr(tfds_reader, '_open_records', lambda *args: Examples(open_records(*args)))
  with tfds.testing.mock_data(num_examples=7):
    examples = list(tfds.data_source(name, split='train'))
    _, size, channels = examples[0]['image'].shape
    config = DataConfig(
        name=name, image_size=size, num_channels=channels, batch_size=7, cache_dir=str(tmp_path / 'cache'))
    source = sources.load_source(config)
  labels = [example['label'] for example in examples] if source.labels is not None else None
  check(source, config, [example['image'] for example in examples], labels)
  assert (labels is None) == (name == 'celeb_a_hq/256')


# The published configs, from the original formats to training. Other tests check their networks, which take minutes to
# trace and compile; MLPs replace them here.


def lsun():
  photos = blobs(8, 300, 3)[:, :256]  # LSUN's smaller side is 256
  return [(f'{i:040x}'.encode(), encoded(image, 'webp', quality=90)) for i, image in enumerate(photos)]


@pytest.mark.parametrize('name', ['cifar10', 'stacked_mnist', 'celebahq_256', 'lsun_church_256'])
def test_published_configs_train_a_step(place, tmp_path, name):
  flags = {'train.num_steps': 1, 'train.num_samples': 4, 'data.batch_size': 4, 'generator.num_channels_dae': 4,
           'generator.kind': 'mlp', 'discriminator.kind': 'mlp', 'discriminator.ngf': 2, 'optim.lazy_reg': 1}
  if name == 'lsun_church_256':
    path = tmp_path / 'church_outdoor_train_lmdb'
    with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as transaction:
      for key, value in lsun():
        transaction.put(key, value)
    flags |= {'data.path': path, 'data.cache_dir': tmp_path / 'cache'}
    count = '8 images'
  else:
    make, tfds_name, count = {
        'cifar10': (cifar10, 'cifar10', '20 images'), 'celebahq_256': (celeb_a_hq, 'celeb_a_hq/256', '8 images'),
        'stacked_mnist': (mnist, 'mnist', '50 images')}[name]
    files, images, _ = make()
    fields = place(tfds_name, files)
    flags |= {f'data.{field}': value for field, value in fields.items()}
    sources.load_source(DataConfig(
        name=tfds_name, image_size=images.shape[1], num_channels=images.shape[3], **fields))  # this test's checksums
  output = succeed(
      train.main, '--config', name, '--workdir', tmp_path / 'run',
      *(f'--config.{field}={value}' for field, value in flags.items()))
  assert count in output and 'Finished 1 steps' in output.splitlines()[-1]
  data = np.asarray(Image.open(tmp_path / 'run' / 'data.png'))
  assert data.ndim == 3 and data.std() > 20
