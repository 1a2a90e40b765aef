"""Where the published weights of the feature networks are: given, in the environment, in the cache, or downloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import threading
from typing import Any

from ddgan_jax.config import UserError

_SECONDS_TO_ANSWER = 8.0


class WeightsError(UserError):
  """The weights are not there, cannot be had, or are not those that a figure needs to be comparable."""


@dataclasses.dataclass(frozen=True)
class Published:
  """A file of weights that others publish.

  Attributes:
    file: its name, which everybody gives it.
    url: where it can be downloaded.
    sha256: the first hexadecimal digits of its checksum.
    variable: the environment variable that may hold its path.
  """

  file: str
  url: str
  sha256: str
  variable: str


INCEPTION = Published(
    'pt_inception-2015-12-05-6726825d.pth',
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth',
    '6726825d', 'DDGAN_JAX_INCEPTION')
VGG16 = Published(
    'vgg16-397923af.pth', 'https://download.pytorch.org/models/vgg16-397923af.pth', '397923af', 'DDGAN_JAX_VGG16')


def cache_folder() -> pathlib.Path:
  """Where downloads are kept: `ddgan_jax/weights` in $XDG_CACHE_HOME or ~/.cache."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  return pathlib.Path(base) / 'ddgan_jax' / 'weights'


def find(published: Published, path: str | os.PathLike | None = None, allow_any: bool = False) -> pathlib.Path:
  """Finds the file: `path`, else the environment variable, else the cache folder, else it is downloaded into that.

  Args:
    published: which.
    path: the file, if the user says where it is.
    allow_any: takes a file that `path` or the variable names whatever its checksum is. Features of other weights make
      figures that nothing can be compared with.

  Returns:
    A path of a file that exists, with the published checksum unless `allow_any`.

  Raises:
    WeightsError: there is no such file, it has another checksum, or it cannot be downloaded; one sentence.
  """
  for given, where in ((path, ''), (os.environ.get(published.variable), f'${published.variable}: ')):
    if given:
      file = pathlib.Path(given).expanduser()
      if not file.is_file():
        found = 'is a folder' if file.is_dir() else 'does not exist'
        raise WeightsError(f'{where}{file} {found}, must be the file {published.file}')
      if not allow_any:
        _check(published, file, f'{where}{file}', 'give the published file, which can be downloaded from '
               + published.url)
      return file
  file = cache_folder() / published.file
  if file.is_file():
    _check(published, file, str(file), 'delete it to have it downloaded again')
  else:
    _download(published, file)
  return file


def _check(published: Published, file: pathlib.Path, name: str, advice: str) -> None:
  try:
    with open(file, 'rb') as stream:
      found = hashlib.file_digest(stream, 'sha256').hexdigest()
  except OSError as e:
    raise WeightsError(f'{name} cannot be read ({e.strerror})') from e
  if not found.startswith(published.sha256):
    raise WeightsError(f'{name} has the SHA-256 checksum {found[:8]}…, must be {published.sha256}… as that of '
                       f'{published.file}; {advice}')


def _download(published: Published, file: pathlib.Path) -> None:
  import requests
  import tqdm

  instead = f'put {published.file} into {file.parent}, or its path into the environment variable {published.variable}'
  partial = file.with_name(f'{file.name}.{os.getpid()}.partial')
  try:
    response = _open(published.url)
    with response:
      response.raise_for_status()
      file.parent.mkdir(parents=True, exist_ok=True)
      with open(partial, 'wb') as stream, tqdm.tqdm(
          total=int(response.headers.get('Content-Length', 0)) or None, desc=f'Downloading {published.file}', unit='B',
          unit_scale=True, mininterval=0.5, dynamic_ncols=True) as bar:
        for chunk in response.iter_content(2**20):
          stream.write(chunk)
          bar.update(len(chunk))
    _check(published, partial, f'What {published.url} sent', instead)
    os.replace(partial, file)
  except requests.RequestException as e:
    cause = f'it answers {e.response.status_code}' if e.response is not None else type(e).__name__
    raise WeightsError(f'{published.file} is not here and {published.url} cannot be downloaded ({cause}); '
                       f'{instead}') from e
  except OSError as e:
    raise WeightsError(f'{e.filename or file.parent}: {e.strerror or e}; {instead}') from e
  finally:
    partial.unlink(missing_ok=True)


def _open(url: str) -> Any:
  """The answer to GET, its body not read yet; raises `requests.ConnectTimeout` if there is none soon.

  A thread, because the time-outs of requests hold for each address of a host and not at all for looking its name up.
  """
  import requests

  answers: list[Any] = []

  def ask():
    try:
      answers.append(requests.get(url, stream=True, timeout=(_SECONDS_TO_ANSWER / 2, _SECONDS_TO_ANSWER)))
    except requests.RequestException as e:
      answers.append(e)

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_SECONDS_TO_ANSWER)
  if not answers:
    raise requests.ConnectTimeout(f'no answer within {_SECONDS_TO_ANSWER:g} s')
  if isinstance(answers[0], Exception):
    raise answers[0]
  return answers[0]
