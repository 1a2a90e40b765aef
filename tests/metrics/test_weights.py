"""Where weights are searched for, and the errors if they are missing; a local server stands in for the real ones."""

import contextlib
import hashlib
import http.server
import os
import socket
import threading

import pytest

from ddgan_jax.metrics.features import dinov2, inception, vgg, weights
from ddgan_jax.metrics.features.weights import Published, WeightsError
from tests.support import GOLDEN

CONTENT = b'weights' * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for variable in ('WEIGHTS', 'DDGAN_JAX_INCEPTION', 'DDGAN_JAX_VGG16', 'DDGAN_JAX_DINOV2_VITL14'):
    monkeypatch.delenv(variable, raising=False)
  for variable in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  return tmp_path / 'cache' / 'ddgan_jax' / 'weights'


@contextlib.contextmanager
def server(status, content, length=None):
  """Answers every GET alike; yields the published file and the list of requests."""
  requests = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      requests.append(self.path)
      self.send_response(status)
      self.send_header('Content-Length', str(len(content) if length is None else length))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield Published('w.pth', f'http://127.0.0.1:{httpd.server_port}/w.pth', SHA256, 'WEIGHTS'), requests
    httpd.shutdown()


def unreachable():
  """A published file at a port where nothing listens."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return Published('w.pth', f'http://127.0.0.1:{probe.getsockname()[1]}/w.pth', SHA256, 'WEIGHTS')


def test_weights_are_downloaded_once(cache):
  with server(200, CONTENT) as (published, requests):
    file = weights.find(published)
    assert file == cache / 'w.pth' and file.read_bytes() == CONTENT
    assert weights.find(published) == file
    assert requests == ['/w.pth']
  assert [path.name for path in cache.iterdir()] == ['w.pth']


@pytest.mark.parametrize('status, content, length, cause', [
    (404, b'', None, r'cannot be downloaded \(HTTP status 404\)'),
    (200, CONTENT[:100], len(CONTENT), r'cannot be downloaded \(\w+\)'),
    (200, b'<html>', None, 'its SHA-256 checksum is not'),
])
def test_failed_downloads_leave_nothing(cache, status, content, length, cause):
  with server(status, content, length) as (published, _), pytest.raises(WeightsError, match=cause) as error:
    weights.find(published)
  assert f'put w.pth into {cache}, or its path into the environment variable WEIGHTS' in str(error.value)
  assert not cache.exists() or not any(cache.iterdir())


def test_an_unreachable_server_is_reported(cache):
  with pytest.raises(WeightsError, match=r'w.pth cannot be downloaded \(ConnectionError\)') as error:
    weights.find(unreachable())
  assert f'put w.pth into {cache}, or' in str(error.value)


def test_a_server_that_never_answers_times_out(monkeypatch):
  monkeypatch.setattr(weights, '_TIMEOUT', 0.5)
  with socket.socket() as silent_server:
    silent_server.bind(('127.0.0.1', 0))
    silent_server.listen()
    published = Published('w.pth', f'http://127.0.0.1:{silent_server.getsockname()[1]}/w.pth', SHA256, 'WEIGHTS')
    with pytest.raises(WeightsError, match=r'cannot be downloaded \(\w+Timeout\)'):
      weights.find(published)


def test_the_argument_precedes_the_variable_and_the_cache(cache, tmp_path, monkeypatch):
  published = unreachable()
  cache.mkdir(parents=True)
  for file in (cache / 'w.pth', tmp_path / 'of_variable.pth', tmp_path / 'given.pth'):
    file.write_bytes(CONTENT)
  assert weights.find(published) == cache / 'w.pth'
  monkeypatch.setenv('WEIGHTS', str(tmp_path / 'of_variable.pth'))
  assert weights.find(published) == tmp_path / 'of_variable.pth'
  assert weights.find(published, tmp_path / 'given.pth') == tmp_path / 'given.pth'


def test_another_checksum_is_refused_unless_allowed(cache, tmp_path, monkeypatch):
  published = unreachable()
  other = tmp_path / 'other.pth'
  other.write_bytes(b'other')
  found = hashlib.sha256(b'other').hexdigest()[:8]
  with pytest.raises(WeightsError, match=f'^{other} has the SHA-256 checksum {found}…; use w.pth .{SHA256[:8]}…. from'):
    weights.find(published, other)
  assert weights.find(published, other, allow_any=True) == other
  monkeypatch.setenv('WEIGHTS', str(other))
  with pytest.raises(WeightsError, match=rf'^\$WEIGHTS: {other} has the SHA-256 checksum {found}'):
    weights.find(published)
  monkeypatch.delenv('WEIGHTS')
  cache.mkdir(parents=True)
  (cache / 'w.pth').write_bytes(b'damaged')  # the user did not name this file: it is downloaded again
  with pytest.raises(WeightsError, match='w.pth cannot be downloaded'):
    weights.find(published, allow_any=True)
  with server(200, CONTENT) as (published, _):
    assert weights.find(published, allow_any=True).read_bytes() == CONTENT


def test_paths_that_are_not_files_are_refused(tmp_path, monkeypatch):
  with pytest.raises(WeightsError, match='none.pth does not exist; use w.pth'):
    weights.find(unreachable(), tmp_path / 'none.pth', allow_any=True)
  monkeypatch.setenv('WEIGHTS', str(tmp_path))
  with pytest.raises(WeightsError, match=rf'^\$WEIGHTS: {tmp_path} is not a file; use w.pth'):
    weights.find(unreachable())


def test_an_unwritable_cache_is_reported(cache, monkeypatch):
  cache.parent.parent.mkdir(parents=True)
  cache.parent.write_text('a file in the place of a folder')
  advice = r'put the path of w.pth into the environment variable WEIGHTS$'
  with pytest.raises(WeightsError, match=rf'^{cache} cannot be written \(Not a directory\); {advice}'):
    weights.find(unreachable())
  cache.parent.unlink()

  def refuse(path, **options):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(os, 'makedirs', refuse)  # root may write everywhere
  with pytest.raises(WeightsError, match=rf'^{cache} cannot be written \(Permission denied\); {advice}'):
    weights.find(unreachable())


@pytest.mark.parametrize('load, variable, missing', [
    (inception.load, 'DDGAN_JAX_INCEPTION', 'Conv2d_1a_3x3.bn.weight'),
    (vgg.load, 'DDGAN_JAX_VGG16', 'features.0.weight'),
    (dinov2.load, 'DDGAN_JAX_DINOV2_VITL14', 'cls_token'),
])
def test_other_checkpoints_are_refused(monkeypatch, load, variable, missing):
  with pytest.raises(WeightsError, match=f'torch_zip.pth: {missing} is missing'):
    load(str(GOLDEN / 'torch_zip.pth'), allow_any=True)
  monkeypatch.setenv(variable, str(GOLDEN / 'torch_zip.pth'))
  with pytest.raises(WeightsError, match=rf'^\${variable}: .* has the SHA-256 checksum'):
    load()


def test_published_names_contain_their_checksums():
  for published in (weights.INCEPTION, weights.VGG16):
    assert published.file.endswith(f'-{published.sha256[:8]}.pth') and published.url.endswith('/' + published.file)
    assert len(published.sha256) == 64
  for published, *_ in dinov2.MODELS.values():  # without a checksum in their names
    assert published.url.endswith('/' + published.file) and len(published.sha256) == 64
