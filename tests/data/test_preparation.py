"""data.preparation and its command: data are prepared once, completely or not at all, and again where needed."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ddgan_jax import prepare as prepare_command
from ddgan_jax.config import DataConfig
from ddgan_jax.data import images, preparation, readers, sources
from ddgan_jax.data.readers import DataError
from tests.support import ROOT
from tests.support.commands import run_command, succeed


class Numbered(readers.Reader):
  """Image i has the constant value i; counts how often it is read."""

  title = 'numbered'
  has_labels = True
  num_classes = 10

  def __init__(self, n=100, stop_at=None):
    self._n = n
    self._stop_at = stop_at
    self.reads = []

  def __len__(self):
    return self._n

  def name(self, i):
    return f'image {i}'

  def read(self, i):
    if i == self._stop_at:
      raise KeyboardInterrupt
    self.reads.append(i)
    return np.full((64, 64, 3), i % 256, np.uint8), i % 10

  def fingerprint(self):
    return f'{self._n}'


@pytest.fixture
def config(tmp_path):
  return DataConfig(name='folder', path=str(tmp_path / 'x'), image_size=64, cache_dir=str(tmp_path / 'cache'))


def prepare(reader, config):
  messages = []
  prepared = preparation.prepare(reader, config, messages.append)
  return prepared, messages


def check(prepared, n):
  expected = (np.arange(n) % 256).astype(np.uint8)
  np.testing.assert_array_equal(prepared.images(True), np.broadcast_to(expected[:, None, None, None], (n, 64, 64, 3)))
  np.testing.assert_array_equal(prepared.labels(), np.arange(n) % 10)


def test_data_are_prepared_once_and_then_reused(config):
  reader = Numbered()
  prepared, messages = prepare(reader, config)
  check(prepared, 100)
  assert sorted(reader.reads) == list(range(100)) and messages == []
  assert sorted(os.listdir(prepared.folder)) == ['images.npy', 'labels.npy', 'meta.json']
  again, messages = prepare(reader, config)
  assert again == prepared and len(reader.reads) == 100 and messages == []
  mapped = prepared.images(in_memory=False)
  assert isinstance(mapped, np.memmap) and mapped[99, 0, 0, 0] == 99


def test_an_interrupted_preparation_leaves_nothing_behind(config):
  with pytest.raises(KeyboardInterrupt):
    prepare(Numbered(3000, stop_at=2500), config)  # after two chunks of 1,024
  assert preparation.find(config) is None
  assert [name for name in os.listdir(config.cache_dir) if not name.endswith('.lock')] == []


def test_leftovers_of_a_killed_preparation_are_ignored(config):
  partial = pathlib.Path(f'{preparation.prepared_folder(config)}.partial')
  partial.mkdir(parents=True)
  (partial / 'images.npy').write_bytes(b'torn' * 10**6)
  (partial / 'journal.json').write_text('{}')
  prepared, _ = prepare(Numbered(), config)
  check(prepared, 100)
  assert sorted(os.listdir(prepared.folder)) == ['images.npy', 'labels.npy', 'meta.json'] and not partial.exists()


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / 'meta.json').write_text('{"version"'),
    lambda folder: os.truncate(folder / 'images.npy', 5000),
    lambda folder: (folder / 'labels.npy').unlink(),
    lambda folder: (folder / 'labels.npy').write_bytes(b'x'),
    lambda folder: (folder / 'labels.npy').write_bytes(b''),
    lambda folder: (folder / 'meta.json').write_text('{"version": 1}'),
    lambda folder: (folder / 'images.npy').open('r+b').write(b'x' * 128),
    lambda folder: (folder / 'meta.json').write_text((folder / 'meta.json').read_text().replace(
        '"version": 1', '"version": 0')),
])
def test_damaged_data_are_prepared_again(config, damage):
  prepared, _ = prepare(Numbered(), config)
  damage(prepared.folder)
  again, messages = prepare(Numbered(), config)
  check(again, 100)
  assert messages == [f'{prepared.folder} is damaged or no longer matches the data; preparing it again.']


def test_changed_data_are_prepared_again(config):
  prepare(Numbered(100), config)
  again, messages = prepare(Numbered(120), config)
  check(again, 120)
  assert 'no longer matches the data; preparing it again' in messages[0]


def test_refused_images_are_read_again(config):
  class Flaky(Numbered):
    fail = True

    def read(self, i):
      if self.fail and i in (2000, 2500):
        raise images.BadImage('cannot be read (Stale file handle)')
      return super().read(i)

  reader = Flaky(3000)
  with pytest.raises(DataError, match='2 of 3,000 images of numbered cannot be used: image 2000 cannot be read'):
    prepare(reader, config)
  reader.fail, reader.reads = False, []
  prepared, messages = prepare(reader, config)
  check(prepared, 3000)
  assert messages == []


def test_equal_sets_have_equal_checksums(config):
  class WithBadImage(Numbered):

    def read(self, i):
      if i == 3:
        raise images.BadImage('is bad')
      return super().read(i if i < 3 else i - 1)

    def fingerprint(self):
      return 'holed'

  clean, _ = prepare(Numbered(1500), config)
  reduced, _ = prepare(WithBadImage(1501), dataclasses.replace(config, cache_dir=config.cache_dir + '2', skip_bad=True))
  np.testing.assert_array_equal(clean.images(True), reduced.images(True))
  assert len(reduced.skipped) == 1 and clean.checksum == reduced.checksum
  other, _ = prepare(Numbered(1499), dataclasses.replace(config, cache_dir=config.cache_dir + '3'))
  assert other.checksum != clean.checksum


def test_overwrite_prepares_the_data_again(config):
  reader = Numbered()
  prepare(reader, config)
  preparation.prepare(reader, config, print, overwrite=True)
  assert len(reader.reads) == 200


def test_many_bad_images_end_the_check_early(tmp_path):
  for i in range(1500):
    (tmp_path / f'{i:04d}.png').write_bytes(b'')
  config = DataConfig(name='folder', path=str(tmp_path), image_size=8, cache_dir=str(tmp_path / 'c'))
  with pytest.raises(DataError, match='1,024 of the first 1,024 of 1,500 images of .*: 0000.png is empty'):
    sources.load_source(config)


def test_too_little_disk_space_is_reported(config, monkeypatch):
  monkeypatch.setattr(preparation.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=2**21))
  with pytest.raises(DataError, match='has 2 MiB of free space, but 1,000 images of 64x64x3 need 12 MiB; .*cache=none'):
    prepare(Numbered(1000), config)
  monkeypatch.undo()

  def full(folder):
    raise OSError(28, 'No space left on device', str(folder / 'images.npy'))

  monkeypatch.setattr(preparation, '_sync', full)
  with pytest.raises(DataError, match='images.npy: No space left on device; free some space, or use'):
    prepare(Numbered(), config)


def test_a_second_process_waits_for_the_first(config, tmp_path):
  code = f'''
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_preparation import *
class Slow(Numbered):
  def read(self, i):
    time.sleep(0.02)
    return super().read(i)
reader = Slow()
prepared, messages = prepare(reader, DataConfig(**{dataclasses.asdict(config)!r}))
check(prepared, 100)
print(len(reader.reads), messages)
'''
  both = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
  results = sorted(process.communicate(timeout=600)[0].strip() for process in both)
  assert results[0].startswith('0 [') and results[1] == '100 []'


# The command


KILLED_AT_IMAGE_1100 = '''
import itertools, os, signal, sys
from ddgan_jax import prepare
from ddgan_jax.data import images
decode, number = images.decode, itertools.count()

def decode_or_die(*arguments):
  if next(number) == 1100:
    os.kill(os.getpid(), signal.SIGKILL)
  return decode(*arguments)

images.decode = decode_or_die
prepare.main(sys.argv[1:])
'''


@pytest.fixture
def photos(tmp_path):
  rng = np.random.default_rng(0)
  for k, (width, height) in enumerate([(90, 70), (64, 64), (20, 300)] * 4):
    folder = tmp_path / 'photos' / ('cat', 'dog')[k % 2]
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    image.save(folder / f'{k}.{("png", "jpg", "webp")[k % 3]}')
  return tmp_path / 'photos'


def test_the_command_describes_the_data(photos, tmp_path):
  flags = [f'--config.data.path={photos}', f'--config.data.cache_dir={tmp_path / "cache"}',
           f'--preview={tmp_path}/p.png']
  first = succeed(prepare_command.main, '--config=folder:64', *flags)
  assert f'{photos}: 12 images of 64x64x3, 0.1 MiB as uint8, in {tmp_path / "cache"}' in first
  assert '2 classes: cat 6, dog 6\n' in first
  preview = np.asarray(Image.open(tmp_path / 'p.png'))
  assert preview.shape == (3 * 66 + 2, 4 * 66 + 2, 3) and preview.std() > 20
  assert succeed(prepare_command.main, '--config=folder:64', *flags) == first
  (photos / 'cat' / 'x.png').write_bytes(b'')
  bad = run_command(prepare_command.main, '--config=folder:64', *flags)
  assert bad.status == 2 and 'Traceback' not in bad.err
  assert bad.err.splitlines()[-1].startswith('Error: 1 of 13 images of') and 'cat/x.png is empty' in bad.err


def test_a_killed_command_starts_over(tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / 'photos').mkdir()
  for k in range(1200):  # read in chunks of 1,024
    Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(tmp_path / 'photos' / f'{k:04d}.bmp')
  arguments = ['--config=folder:8', f'--config.data.path={tmp_path / "photos"}',
               f'--config.data.cache_dir={tmp_path / "cache"}', f'--preview={tmp_path}/p.png']
  killed = subprocess.run([sys.executable, '-c', KILLED_AT_IMAGE_1100, *arguments], cwd=ROOT, capture_output=True)
  partial = lambda: [path for path in (tmp_path / 'cache').glob('*.partial/images.npy') if path.stat().st_size > 2**13]
  assert killed.returncode == -signal.SIGKILL and partial()
  subprocess.run([sys.executable, '-m', 'ddgan_jax.prepare', *arguments], capture_output=True, cwd=ROOT, check=True)
  assert not partial()
  folder, = (path for path in (tmp_path / 'cache').glob('photos*') if path.suffix != '.lock')
  found = np.load(folder / 'images.npy')
  assert found.shape == (1200, 8, 8, 3)
  for k in (0, 1100, 1199):
    original = Image.open(tmp_path / 'photos' / f'{k:04d}.bmp').resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found[k], np.asarray(original))
