"""Set-up for all tests: eight simulated devices, a compilation cache, and tiny configs."""

import os
import pathlib

from tests.support import quick_config_dict, tiny_config_dict, xla_flags

# Set before JAX is imported, here and in the commands that tests start.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {xla_flags(8)}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'xla'))
# Tests share prepared data with each other, but not with the user's runs.
os.environ['XDG_CACHE_HOME'] = str(pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'cache')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES', 'none')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # compiling is most of what the tests do

import gc

import filelock
import jax
import pytest

gc.set_threshold(100_000, 20, 100)  # traced programs are many small, long-lived objects


@pytest.fixture(autouse=True, scope='module')
def clear_compiled_programs():
  """Linux limits a process to 65,530 memory maps, and each compiled program takes hundreds: XLA would abort."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_text().count('\n') > 15_000:
    from tests.support import programs

    programs.compiled.clear()
    jax.clear_caches()


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A TFDS directory in which `digits` has been prepared from scratch."""
  from ddgan_jax.config import DataConfig
  from ddgan_jax.data import sources

  path = str(tmp_path_factory.mktemp('tfds'))
  sources.load_source(DataConfig(image_size=8, num_channels=1, data_dir=path))
  return path


@pytest.fixture(scope='session')
def digits_classifier(tmp_path_factory):
  """(classifier, data): trained in fewer steps than usual, once for all workers and commands, which find it cached."""
  from ddgan_jax.config import DataConfig
  from ddgan_jax.data import sources
  from ddgan_jax.metrics import modes

  lock = filelock.FileLock(tmp_path_factory.getbasetemp().parent / 'classifier.lock')
  with lock, pytest.MonkeyPatch.context() as patch:
    patch.setattr(modes, '_STEPS', 600)
    source = sources.load_source(DataConfig(image_size=8, num_channels=1))
    return modes.load_classifier(source, log=lambda text: None), source


@pytest.fixture(scope='session')
def tiny_config():
  from ddgan_jax import config

  return config.from_config_dict(tiny_config_dict())


@pytest.fixture(scope='session')
def quick_config():
  from ddgan_jax import config

  return config.from_config_dict(quick_config_dict())
