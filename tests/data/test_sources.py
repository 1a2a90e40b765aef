"""data.sources, data.trees and data.arrays: folders, zip, npz and LMDB files, read end to end."""

import io
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from unittest import mock

import lmdb
import numpy as np
import pytest
from PIL import Image

from ddgan_jax.config import ConfigError, DataConfig
from ddgan_jax.data import images, pipeline, sources
from ddgan_jax.data.readers import DataError, arrays
from ddgan_jax.data.readers.open import open_reader
from tests.support import little_memory

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (7, 8, 8, 3), np.uint8)


def png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'png')
  return file.getvalue()


def write_tree(root, files):
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return root


def write_zip(path, files):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return path


def write_lmdb(path, items):
  with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as transaction:
    for key, value in items:
      transaction.put(key, value)
  return path


def load(name, path, **fields):
  messages = []
  fields = {'image_size': 8, 'cache_dir': str(path.parent / 'cache'), **fields}
  source = sources.load_source(DataConfig(name=name, path=str(path), **fields), messages.append)
  source.messages = messages
  return source


def check(source, images, labels):
  found, found_labels = source.gather(np.arange(len(source)))
  np.testing.assert_array_equal(found, images)
  assert found_labels.tolist() == list(labels) and found_labels.dtype == np.int32


# Sorted by name, in the order of the images 0 to 6.
TREE = {
    'Ärger/0.png': 0, 'cat/a b.png': 1, 'cat/deep/b.png': 2, 'cat/é 图.PNG': 3, 'dog/0.webp': 4, 'dog/1.gif': 5,
    'dog/2.bmp': 6}


def tree_files():
  files = {}
  for name, i in TREE.items():
    file = io.BytesIO()
    image = Image.fromarray(IMAGES[i])
    kind = os.path.splitext(name)[1][1:].lower()
    if kind == 'gif':  # two colours, so that the palette is exact
      image = Image.fromarray(np.where(IMAGES[i][..., :1] > 127, np.uint8(255), np.uint8(0)).repeat(3, -1))
    image.save(file, kind, **({'lossless': True} if kind == 'webp' else {}))
    files[name] = file.getvalue()
  return files


def tree_pixels():
  order = sorted(TREE)
  pixels = IMAGES.copy()
  pixels[5] = np.where(IMAGES[5][..., :1] > 127, 255, 0)
  return pixels[[TREE[name] for name in order]], [['cat', 'dog', 'Ärger'].index(name.split('/')[0]) for name in order]


@pytest.mark.parametrize('cache', ['array', 'none'])
def test_folder_end_to_end(tmp_path, cache):
  folder = write_tree(tmp_path / 'my photos', tree_files())
  write_tree(folder, {'notes.txt': b'x', 'cat/.DS_Store': b'x', '.git/1.png': b'x', 'IMG.HEIC': b'x'})
  source = load('folder', folder, cache=cache)
  check(source, *tree_pixels())
  assert source.class_names == ('cat', 'dog', 'Ärger') and source.num_classes == 3
  assert source.labels.tolist() == tree_pixels()[1]
  assert source.messages == [f'{folder}: ignored files that are not images: 1 .heic, 1 .txt.']
  batch = next(pipeline.batches(source, DataConfig(batch_size=7), 0, 0, 1))
  assert sorted(batch['label'].tolist()) == sorted(tree_pixels()[1])


def test_folder_through_links_and_without_classes(tmp_path):
  files = tree_files()
  elsewhere = write_tree(tmp_path / 'elsewhere', {'x/9.png': files['cat/a b.png']})
  folder = write_tree(tmp_path / 'flat', {'0.png': files['Ärger/0.png']})
  (folder / 'linked').symlink_to(elsewhere)
  source = load('folder', folder)
  check(source, IMAGES[:2], [0, 0])
  assert source.labels is None and source.num_classes is None  # an image beside the folders, so they are not classes


@pytest.mark.parametrize('top', ['', 'photos/', 'a/b/'])
@pytest.mark.parametrize('cache', ['array', 'none'])
def test_zip_end_to_end(tmp_path, top, cache):
  files = {top + name: content for name, content in tree_files().items()}
  source = load('zip', write_zip(tmp_path / 'photos.zip', {**files, '__MACOSX/x.png': b'', 'empty/': b''}), cache=cache)
  check(source, *tree_pixels())
  assert source.class_names == ('cat', 'dog', 'Ärger')


@pytest.mark.parametrize('rename', [lambda name: './' + name, lambda name: name.replace('/', '\\')])
def test_zips_written_by_other_programs(tmp_path, rename):
  source = load('zip', write_zip(tmp_path / 'x.zip', {rename(name): file for name, file in tree_files().items()}))
  check(source, *tree_pixels())


def test_folders_that_are_not_classes_are_reported(tmp_path):
  image = png(IMAGES[0])
  folder = write_tree(tmp_path / 'a', {'cat/0.png': image, 'dog/0.png': image, 'cover.png': image})
  assert load('folder', folder).messages == [f'{folder}: no labels, because cover.png is not in a class folder.']
  folder = write_tree(tmp_path / 'b', {'train/cat/0.png': image, 'test/cat/0.png': image})
  assert 'the classes are test and train; if these are splits' in load('folder', folder).messages[0]


@pytest.mark.parametrize('shape', [(7, 8, 8, 3), (7, 8, 8, 1), (7, 8, 8)])
def test_npz_end_to_end(tmp_path, shape):
  images = IMAGES[..., 0] if shape[3:] == () else IMAGES[..., :shape[3]]
  labels = np.array([3, 1, 2, 0, 0, 1, 3], np.int64)
  path = tmp_path / 'set.npz'
  np.savez_compressed(path, images=images, labels=labels)
  channels = 3 if shape[3:] == (3,) else 1
  source = load('npz', path, num_channels=channels)
  check(source, images.reshape(7, 8, 8, channels), labels)
  assert source.num_classes == 4 and source.class_names is None
  np.savez(path, images=images)
  assert load('npz', path, num_channels=channels).labels is None


def test_lmdb_as_lsun_publishes_it(tmp_path):
  webp = io.BytesIO()
  Image.fromarray(IMAGES[1]).save(webp, 'webp', lossless=True)
  jpeg = io.BytesIO()
  Image.new('RGB', (12, 8), (200, 30, 60)).save(jpeg, 'jpeg', quality=95)
  items = [(b'aa01', png(IMAGES[0])), (b'bb7f', webp.getvalue()), (b'ccff', jpeg.getvalue())]
  for cache in ('array', 'none'):
    source = load('lmdb', write_lmdb(tmp_path / f'church_{cache}_lmdb', items), resize='crop', cache=cache)
    images, labels = source.gather(np.arange(3))
    np.testing.assert_array_equal(images[:2], IMAGES[:2])
    assert np.abs(images[2].astype(int) - [200, 30, 60]).max() <= 3 and labels.tolist() == [0, 0, 0]
    assert source.labels is None


def test_lmdb_as_the_celeba_hq_recipe_stores_it(tmp_path):
  # Raw RGB under decimal keys, which LMDB itself would order 0, 1, 10, 11, 2, …
  images = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
  path = write_lmdb(tmp_path / 'train.lmdb', [(str(i).encode(), image.tobytes()) for i, image in enumerate(images)])
  check(load('lmdb', path), images, [0] * 12)
  check(load('lmdb', path / 'data.mdb'), images, [0] * 12)


def test_raw_lmdb_beside_other_keys(tmp_path):
  images = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
  images[0, 0, 0] = (255, 216, 255)  # like the start of a JPEG
  items = [(str(i).encode(), image.tobytes()) for i, image in enumerate(images)]
  check(load('lmdb', write_lmdb(tmp_path / 'a', items)), images, [0] * 12)
  path = write_lmdb(tmp_path / 'b', [*items, (b'length', b'12')])
  expect('1 of 13 images .*key length has 2 bytes, but the others have 192', 'lmdb', path)
  assert len(load('lmdb', path, skip_bad=True)) == 12


def test_readers_can_be_pickled(tmp_path):
  paths = {
      'folder': write_tree(tmp_path / 'f', tree_files()), 'zip': write_zip(tmp_path / 'f.zip', tree_files()),
      'lmdb': write_lmdb(tmp_path / 'f.lmdb', [(b'0', png(IMAGES[0]))])}
  for name, path in paths.items():
    reader = open_reader(DataConfig(name=name, path=str(path)))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(0) == reader.read(0) and copy.fingerprint() == reader.fingerprint()


def test_stacking_works_for_any_grey_source(tmp_path):
  grey = IMAGES[..., 0]
  np.savez(tmp_path / 'grey.npz', images=grey, labels=np.arange(7))
  source = load('npz', tmp_path / 'grey.npz', num_channels=3, stack=3)
  batch = pipeline.global_batch(source, DataConfig(stack=3, batch_size=7), 0, 0)
  pixels = np.round((batch['image'] + 1) * 127.5).astype(np.uint8)
  for image, label in zip(pixels, batch['label']):
    a, b, c = label // 100, label // 10 % 10, label % 10
    np.testing.assert_array_equal(image, np.stack([grey[a], grey[b], grey[c]], -1))
  np.savez(tmp_path / 'many.npz', images=grey, labels=np.arange(7) * 2)
  with pytest.raises(ConfigError, match='data.stack is 3, but .* has 13 classes; use a set of at most ten'):
    load('npz', tmp_path / 'many.npz', stack=3)
  assert len([path for path in (tmp_path / 'cache').iterdir() if path.is_dir()]) == 1  # only the first one


# Invalid input: one sentence that names what was found


def expect(message, name, path, **fields):
  with pytest.raises((ConfigError, DataError), match=message) as error:
    load(name, path, **fields)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_a_path_of_the_wrong_kind_is_refused(tmp_path):
  files = tree_files()
  folder, archive = write_tree(tmp_path / 'f', files), write_zip(tmp_path / 'f.zip', files)
  np.savez(tmp_path / 'a.npz', images=IMAGES)
  (tmp_path / 'x.txt').write_text('hello')
  expect('data.path: .*/none does not exist', 'folder', tmp_path / 'none')
  expect('is opened as .*folder.*, but is zip; use --config.data.name=zip', 'folder', archive)
  expect('is npz; use --config.data.name=npz', 'zip', tmp_path / 'a.npz')
  expect('is folder; use --config.data.name=folder', 'npz', folder)
  expect('is a folder without data.mdb; use the folder that contains data.mdb', 'lmdb', folder)
  expect('is none of folder, npz, zip, lmdb', 'folder', tmp_path / 'x.txt')
  with pytest.raises(DataError, match='data.path: gs://b/x is not a local path; copy or mount it first'):
    open_reader(DataConfig(name='folder', path='gs://b/x'))
  expect("data.cache_dir is 'gs://b/x'; use a local folder", 'folder', folder, cache_dir='gs://b/x')


def test_folders_without_images(tmp_path):
  (tmp_path / 'empty').mkdir()
  expect('empty contains no image', 'folder', tmp_path / 'empty')
  expect('contains no image .*; 2 .txt', 'folder', write_tree(tmp_path / 't', {'a.txt': b'', 'b.txt': b''}))
  write_zip(tmp_path / 'e.zip', {'a.txt': b''})
  expect('e.zip contains no image', 'zip', tmp_path / 'e.zip')


def test_class_folders_that_differ_in_case(tmp_path):
  folder = write_tree(tmp_path / 'f', {'Cat/0.png': png(IMAGES[0]), 'cat/0.png': png(IMAGES[1])})
  expect("the class folders 'Cat' and 'cat' in .* differ only in case; merge or rename them", 'folder', folder)


def test_folders_that_link_to_each_other(tmp_path):
  folder = write_tree(tmp_path / 'f', {'a/0.png': png(IMAGES[0]), 'b/1.png': png(IMAGES[1])})
  (folder / 'a' / 'x').symlink_to('../b')
  (folder / 'b' / 'y').symlink_to('../a')
  reader = open_reader(DataConfig(name='folder', path=str(folder)))
  assert reader.names == ['a/0.png', 'a/x/1.png', 'b/1.png', 'b/y/0.png']


def test_messages_are_flushed(tmp_path, monkeypatch):
  """Otherwise the log of a job would show it only at its end."""
  folder = write_tree(tmp_path / 'f', {'0.png': png(IMAGES[0]), 'x.txt': b''})
  monkeypatch.setattr(sys, 'stdout', mock.Mock())
  sources.load_source(DataConfig(name='folder', path=str(folder), image_size=8, cache_dir=str(tmp_path / 'cache')))
  assert sys.stdout.flush.called


def test_bad_images_are_listed_or_skipped(tmp_path):
  files = {f'good {i}.png': png(image) for i, image in enumerate(IMAGES)}
  bad = {
      'a zero.png': b'', 'b cut.png': png(IMAGES[0])[:70], 'c text.png': b'not an image',
      'd size.png': png(IMAGES[0][:5])}
  folder = write_tree(tmp_path / 'f', {**files, **bad})
  (folder / 'e gone.png').symlink_to('nowhere')
  (folder / 'f loop').symlink_to(folder)  # not followed
  (folder / 'g itself.png').symlink_to('g itself.png')
  (folder / '.lock').symlink_to('nobody')  # only image names count
  (folder / 'notes.txt').symlink_to('nowhere')
  message = expect('6 of 13 images of .* cannot be used: .*; and 1 more. ', 'folder', folder)
  for part in ('e gone.png is a broken link',
               'g itself.png is a broken link (Too many levels of symbolic links)', 'a zero.png is empty (0 bytes)',
               'b cut.png is truncated', '--config.data.resize=cover', '--config.data.skip_bad=True'):
    assert part in message
  for _ in range(2):  # when it is prepared, and afterwards
    source = load('folder', folder, skip_bad=True)
    check(source, IMAGES, [0] * 7)
    assert (source.messages[-1].startswith('data.skip_bad: skipped 6 of 13 images')
            and 'e gone.png' in source.messages[-1])
  # Without the flag, the skipped images are still refused.
  expect(r'6 of 13 images .* \(all are listed in \S+meta.json\)\. Fix', 'folder', folder)


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
  folder = write_tree(tmp_path / 'f', {'a.png': png(IMAGES[0])})
  os.mkfifo(folder / 'z.png')
  expect('z.png is not a regular file', 'folder', folder)


def test_a_zipped_lmdb_is_refused(tmp_path):
  write_zip(tmp_path / 'church.zip', {'church_outdoor_train_lmdb/data.mdb': b'x'})
  expect('is a zipped LMDB; unzip it', 'lmdb', tmp_path / 'church.zip')


def test_a_set_without_usable_images_is_refused(tmp_path):
  expect('has no usable image among 1: x.png is empty', 'folder', write_tree(tmp_path / 'f', {'x.png': b''}),
         skip_bad=True)


def test_file_names_that_are_not_unicode(tmp_path):
  folder = write_tree(tmp_path / 'f', {'good.png': png(IMAGES[0])})
  with open(os.fsencode(folder) + b'/bad\xff.png', 'wb'):
    pass
  assert 'bad\\udcff.png is empty' in expect('1 of 2 images', 'folder', folder)
  check(load('folder', folder, skip_bad=True), IMAGES[:1], [0])


def test_unreadable_files_and_folders_are_named(tmp_path):
  folder = write_tree(tmp_path / 'f', {'a/0.png': png(IMAGES[0]), 'b/1.png': png(IMAGES[1]), 'c/2.png': png(IMAGES[2]),
                                   'd/3.png': png(IMAGES[3])})
  (folder / 'd').chmod(0o444)  # its names are readable, its files are not
  (folder / 'a' / '0.png').chmod(0)
  (folder / 'b').chmod(0)
  code = f'''
import os, sys
from ddgan_jax.data import sources
from ddgan_jax.config import DataConfig
def load(path):
  sources.load_source(DataConfig(name='folder', path=path, image_size=8, cache_dir={str(tmp_path / "cache")!r}))
load({str(folder / 'c')!r})  # imports all that is needed, which others than root may not be able to
if os.getuid() == 0:
  os.setuid(65534)  # root may read everything
for path in ({str(folder)!r}, {str(folder / 'b')!r}):
  try:
    load(path)
  except ValueError as e:
    print(e)
'''
  (tmp_path / 'cache').mkdir()
  (tmp_path / 'cache').chmod(0o777)
  for path in (tmp_path, *tmp_path.parents):
    if path == pathlib.Path(tempfile.gettempdir()):
      break
    path.chmod(0o711)
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert 'b cannot be read (Permission denied)' in result.stdout
  assert 'a/0.png cannot be read (Permission denied)' in result.stdout and '3 of 4 images' in result.stdout
  assert 'd/3.png cannot be read (Permission denied)' in result.stdout
  assert f'data.path: {folder / "b"} cannot be read (Permission denied)' in result.stdout


@pytest.mark.parametrize('arrays, message', [
    ({'images': IMAGES / np.float32(255)}, "'images' in .* is float32; use uint8"),
    ({'images': IMAGES.astype(np.int64)}, 'is int64; use uint8'),
    ({'images': IMAGES.reshape(7, -1)}, r'is \[7, 192\]; use \[N, H, W\] or \[N, H, W, C\]'),
    ({'images': IMAGES[..., :2]}, r'\[7, 8, 8, 2\]; use .* C = 1, 3 or 4'),
    ({'images': IMAGES[:0]}, r'is empty \(\[0, 8, 8, 3\]\)'),
    ({'x': IMAGES}, r"has no array 'images' \(it has x\)"),
    ({'images': IMAGES, 'labels': np.arange(6)}, r"'labels' in .* is int64\[6\]; use integers \[7\]"),
    ({'images': IMAGES, 'labels': np.arange(7.0)}, r'is float64\[7\]; use integers'),
    ({'images': IMAGES, 'labels': np.arange(7) - 1}, "'labels' in .* are -1 … 5"),
    ({'images': IMAGES, 'labels': np.full(7, 2**40)}, 'use 0 … 2'),
])
def test_npz_with_invalid_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  expect(message, 'npz', tmp_path / 'x.npz')


def test_other_arrays_of_an_npz_are_not_read(tmp_path):
  np.savez(tmp_path / 'x.npz', images=IMAGES)
  with zipfile.ZipFile(tmp_path / 'x.npz', 'a') as archive:
    archive.writestr('odd.npy', b'no array')
  check(load('npz', tmp_path / 'x.npz'), IMAGES, [0] * 7)


def test_npz_of_objects_is_not_unpickled(tmp_path):
  np.savez(tmp_path / 'x.npz', images=np.array([{}, {}], object))
  expect("'images' in .* is object; use uint8", 'npz', tmp_path / 'x.npz')


def test_damaged_archives(tmp_path):
  np.savez(tmp_path / 'x.npz', images=IMAGES)
  whole = (tmp_path / 'x.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[:900])
  expect('cut.npz cannot be read as npz', 'npz', tmp_path / 'cut.npz')
  (tmp_path / 'flipped.npz').write_bytes(whole[:700] + b'\0\0\0\0' + whole[704:])
  expect('flipped.npz cannot be read as npz .*CRC', 'npz', tmp_path / 'flipped.npz')
  files = tree_files()
  whole = write_zip(tmp_path / 'x.zip', files).read_bytes()
  (tmp_path / 'cut.zip').write_bytes(whole[:-40])
  expect('cut.zip cannot be read as a zip file', 'zip', tmp_path / 'cut.zip')
  at = whole.index(files['dog/2.bmp']) + 60
  (tmp_path / 'flipped.zip').write_bytes(whole[:at] + b'\x55\x66' + whole[at + 2:])
  expect('1 of 7 images .*dog/2.bmp cannot be unpacked .*CRC', 'zip', tmp_path / 'flipped.zip')
  at = whole.rindex(b'PK\x01\x02') + 6
  (tmp_path / 'new.zip').write_bytes(whole[:at] + b'\x63' + whole[at + 1:])
  expect('new.zip cannot be read .*version 9.9', 'zip', tmp_path / 'new.zip')
  encrypted = bytearray(whole)
  encrypted[whole.rindex(b'PK\x01\x02') + 8] |= 1  # the flag in the central directory
  (tmp_path / 'locked.zip').write_bytes(bytes(encrypted))
  expect('locked.zip is encrypted; unpack it', 'zip', tmp_path / 'locked.zip')


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_an_oversized_image_is_refused_unread(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(images, 'MAX_ENCODED_BYTES', 2**20)
  files = {'good.png': png(IMAGES[0]), 'large.png': png(IMAGES[0]) + bytes(2**26)}
  path = write_tree(tmp_path / 'f', files)
  if kind == 'zip':
    path = tmp_path / 'f.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, content in files.items():
        archive.writestr(name, content)
  del files
  with little_memory():
    expect('large.png has 67,1.*; the limit is 1,048,576', kind, path)


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_without_a_size_bound_are_refused(tmp_path, method):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', method) as archive:
    archive.writestr('x.png', png(IMAGES[0]) + bytes(2**26))
  with little_memory():
    expect(r'x.png is compressed by (bzip2|lzma); use stored or deflated', 'zip', tmp_path / 'x.zip')


def test_large_images_are_unpacked_one_at_a_time(tmp_path):
  """Each image is within the size limit."""
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    for i in range(12):
      archive.writestr(f'{i}.png', png(IMAGES[0]) + bytes(2**22))
  with little_memory(45_000_000):  # all at once are 50,331,648
    source = load('zip', tmp_path / 'x.zip')
    assert len(source) == 12
    decoding = load('zip', tmp_path / 'x.zip', cache='none')
    decoding.gather(np.arange(12))


def test_a_zip_is_unpacked_no_further_than_it_declares(tmp_path):
  image = png(IMAGES[0])
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('honest.png', image)
    archive.writestr('x.png', image + bytes(2**26))
    archive.getinfo('x.png').file_size, archive.getinfo('x.png').CRC = len(image), zlib.crc32(image)
  with little_memory():
    source = load('zip', tmp_path / 'x.zip')
  check(source, np.stack([IMAGES[0]] * 2), [0, 0])


def test_npz_shorter_than_its_header_says(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive, archive.open('images.npy', 'w') as file:
    np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': (2, 6, 6, 3)})
    file.write(bytes(215))
  expect('x.npz cannot be read as npz', 'npz', tmp_path / 'x.npz', image_size=6)


def test_npz_that_does_not_fit_into_memory(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / 'x.npz', images=np.zeros((2**20, 8, 8), np.uint8))
  monkeypatch.setattr(arrays, '_available_memory', lambda: 2**25)
  with little_memory():
    expect("'images' in .*x.npz needs 64 MiB of memory, but only 32 MiB are available; use a folder", 'npz',
           tmp_path / 'x.npz')


def test_damaged_lmdb(tmp_path):
  big = [(b'%d' % i, RNG.bytes(3 * 64 * 64)) for i in range(8)]
  path = write_lmdb(tmp_path / 'cut', big)
  os.truncate(path / 'data.mdb', 40_000)
  expect(r'data.mdb is truncated \(it has 40,000 of', 'lmdb', path)
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text' / 'data.mdb').write_bytes(b'hello' * 4000)
  expect('cannot be read as LMDB', 'lmdb', tmp_path / 'text')
  expect('contains no image', 'lmdb', write_lmdb(tmp_path / 'empty', []))
  odd = write_lmdb(tmp_path / 'odd', [(b'%d' % i, RNG.bytes(192 if i != 1 else 100)) for i in range(40)])
  expect('key 1 has 100 bytes, but the others have 192', 'lmdb', odd)


@pytest.mark.parametrize('fields, message', [
    ({'name': 'folder'}, "data.path is empty; set it to the folder to read"),
    ({'name': 'digits', 'path': 'x'}, "data.path is 'x', which data.name='digits' does not read"),
    ({'name': 'zip', 'path': 'x', 'split': 'test'}, "data.split is 'test', but only TFDS sets have splits"),
    ({'num_stacks': 5}, 'data.num_stacks is 5; use it with data.stack=3'),
    ({'resize': 'stretch'}, "data.resize is 'stretch'; use one of 'none', 'crop', 'cover', 'pad'"),
    ({'cache': 'ram'}, "data.cache is 'ram'; use one of 'array', 'none'"),
])
def test_incompatible_fields_are_refused(fields, message):
  from ddgan_jax import config

  with pytest.raises(ConfigError, match=message):
    config.from_config_dict({'data': fields})
