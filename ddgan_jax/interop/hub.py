"""Models on the Hugging Face Hub: `hf://OWNER/NAME`. No other file imports huggingface_hub.

huggingface_hub finds the token, caches downloads and works offline from its cache; nothing of the token is read here.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Sequence
from typing import Any

import ddgan_jax
from ddgan_jax.config import ConfigError, UserError

_PART = r'[A-Za-z0-9](?:[\w.-]*\w)?'
_LOGIN = 'run `hf auth login` or set HF_TOKEN to a token'


class HubError(UserError):
  """The Hub cannot be reached, or does not allow or contain what is needed."""


def parse(address: str) -> tuple[str, str | None]:
  """Splits `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` into OWNER/NAME and the revision or None.

  Raises ConfigError for another text.
  """
  match = re.fullmatch(r'hf://([^@]*)(?:@(\w[\w./-]*))?', address, re.ASCII)
  if not match or not _is_name(match[1]):
    raise ConfigError(f'workdir is {address!r}; use hf://OWNER/NAME or hf://OWNER/NAME@REVISION')
  return match[1], match[2]


def check_name(name: str) -> None:
  """Raises ConfigError unless `name` is OWNER/NAME."""
  if not _is_name(name):
    raise ConfigError(f'--hub is {name!r}; use OWNER/NAME, of letters, digits, -, _ and .')


def _is_name(name: str) -> bool:
  return bool(len(name) <= 96 and re.fullmatch(f'{_PART}/{_PART}', name, re.ASCII)
              and not re.search(r'--|\.\.|\.git$', name))


def download(address: str, names: Sequence[str], show_progress: bool) -> str:
  """Downloads these files of a repository, unless they are cached.

  Args:
    address: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`; by default the newest revision or, without network, the
      newest that is cached.
    names: the files.
    show_progress: whether to show progress bars on standard error.

  Returns:
    The folder in huggingface_hub's cache.

  Raises:
    HubError: the repository, the revision or a file does not exist, or the Hub cannot be reached.
    ConfigError: the address is malformed.
    UserError: huggingface_hub is not installed.
  """
  name, revision = parse(address)
  library = _library()
  try:
    folder = library.snapshot_download(
        name, revision=revision, allow_patterns=list(names), library_name='ddgan_jax',
        library_version=ddgan_jax.__version__, tqdm_class=None if show_progress else _silent(library))
  except Exception as error:  # of huggingface_hub and its HTTP client
    raise HubError(_sentence(error, address)) from error
  for file in names:
    if not os.path.isfile(os.path.join(folder, file)):
      raise HubError(f'{address} has no {file}; use a repository written by ddgan export --hub')
  return folder


def check_login() -> None:
  """Raises HubError unless the Hub can be reached and accepts the user's token; UserError without huggingface_hub."""
  library = _library()
  try:
    library.HfApi().whoami()
  except Exception as error:
    raise HubError(_sentence(error, 'the Hub')) from error


def upload(folder: str, name: str, private: bool, message: str) -> str:
  """Uploads the files of a folder to a repository in one commit; creates the repository if needed.

  Args:
    folder: a folder without subfolders.
    name: OWNER/NAME.
    private: whether the repository must be private.
    message: the commit message.

  Returns:
    The repository's URL.

  Raises:
    HubError: the user may not write, or the Hub cannot be reached.
    UserError: huggingface_hub is not installed.
  """
  library = _library()
  api = library.HfApi(library_name='ddgan_jax', library_version=ddgan_jax.__version__)
  try:
    url = api.create_repo(name, private=private or None, exist_ok=True)
    is_public = private and not api.repo_info(name).private
    if not is_public:
      api.create_commit(
          name, [library.CommitOperationAdd(file, os.path.join(folder, file)) for file in sorted(os.listdir(folder))],
          commit_message=message)
  except Exception as error:
    raise HubError(_sentence(error, f'hf://{name}')) from error
  if is_public:
    raise HubError(f'--private: hf://{name} exists and is public; use another name, or make it private first')
  return str(url)


def _silent(library: types.ModuleType) -> type:
  """A class of progress bars that show nothing."""
  class Silent(library.utils.tqdm):
    def __init__(self, *args: Any, **kwargs: Any):
      super().__init__(*args, **kwargs | {'disable': True})

  return Silent


def _library() -> types.ModuleType:
  try:
    import huggingface_hub
    import huggingface_hub.errors  # noqa: F401, a lazy submodule
    import huggingface_hub.utils  # noqa: F401
  except ImportError as error:
    raise UserError('huggingface_hub is not installed; use pip install "ddgan_jax[hub]"') from error
  return huggingface_hub


def _sentence(error: BaseException, what: str) -> str:
  """Explains an error of huggingface_hub in one sentence, without any text from the server."""
  errors = _library().errors
  causes: list[Any] = [error]
  while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
    causes.append(cause)

  def found(*kinds: type) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)

  status = next((cause.response.status_code for cause in causes if getattr(cause, 'response', None) is not None), None)
  if found(errors.LocalTokenNotFoundError):
    return f'{what} needs a login; {_LOGIN}'
  if found(errors.GatedRepoError):
    return f'{what} requires its owner\'s permission; request it on its page, then {_LOGIN}'
  if found(errors.RevisionNotFoundError):
    return f'{what} has no such revision; use a branch, tag or commit of the repository'
  if found(errors.RepositoryNotFoundError):
    return f'{what} is not found; check the name or, if it is private, {_LOGIN} that may read it'
  if status == 401:
    return f'{what} refused the token (401); {_LOGIN} that is valid'
  if status == 403:
    return f'{what} refused access (403); {_LOGIN} with permission for it'
  if status == 400:
    return f'{what} refused the request (400); check the name and --license'
  if status is not None:
    return f'{what} answered with status {status}; try again later'
  cached = ' and is not in the cache' if found(errors.LocalEntryNotFoundError) else ''
  if found(errors.OfflineModeIsEnabled):
    return f'{what} cannot be reached{cached}: HF_HUB_OFFLINE is set; unset it to use the network'
  if found(errors.HTTPError, ConnectionError) or cached:
    return f'{what} cannot be reached{cached}; check the network'
  return f'{what} cannot be used ({getattr(error, "strerror", None) or type(error).__name__})'
