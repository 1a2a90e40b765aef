"""Files are written completely or not at all."""

import os
import pathlib

import pytest

from ddgan_jax.utils import files


@pytest.mark.parametrize('mode, content', [('w', 'größer'), ('wb', b'\0\xff')])
def test_a_write_replaces_the_file_and_leaves_no_temporary_file(tmp_path, mode, content):
  path = tmp_path / 'report.json'
  path.write_text('before')
  with files.atomic_write(path, mode) as file:
    file.write(content)
    assert path.read_text() == 'before'
  assert path.read_bytes() == (content if mode == 'wb' else content.encode())
  assert os.listdir(tmp_path) == ['report.json']


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'report.json'
  path.write_text('before')
  with pytest.raises(KeyboardInterrupt), files.atomic_write(path) as file:
    file.write('half')
    raise KeyboardInterrupt
  assert path.read_text() == 'before'
  assert os.listdir(tmp_path) == ['report.json']


def test_a_missing_folder_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError), files.atomic_write(tmp_path / 'none' / 'report.json') as file:
    file.write('text')
  assert not os.listdir(tmp_path)


def test_caches_follow_the_environment(monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
  assert files.cache_dir('data') == pathlib.Path('/somewhere/ddgan_jax/data')
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setenv('HOME', '/home/anna')
  assert files.cache_dir('weights') == pathlib.Path('/home/anna/.cache/ddgan_jax/weights')
