"""Importing the package changes nothing in the process: JAX, loggers, warnings, environment, flags."""

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

# Imports of other packages may change the process, so the second process imports those packages first.
PROGRAM = '''
import importlib, json, logging, os, pkgutil, sys, warnings

import jax, jax._src.interpreters.mlir as mlir
from absl import flags

def import_other_packages(names):
  for name in names:
    try:
      importlib.import_module(name)
    except Exception:
      pass

def import_package():
  """Imports every module of ddgan_jax; returns the flags that each defines, and forgets them."""
  import ddgan_jax
  found = {}
  before = set(flags.FLAGS)
  for info in pkgutil.walk_packages(ddgan_jax.__path__, 'ddgan_jax.'):
    if not info.name.startswith('ddgan_jax.recipes'):
      importlib.import_module(info.name)
      found[info.name] = sorted(set(flags.FLAGS) - before)
      for flag in found[info.name]:
        delattr(flags.FLAGS, flag)
  return found

def state():
  loggers = {name: logging.getLogger(name) for name in [None, *logging.Logger.manager.loggerDict]}
  return {
      'lowering rules': {
          f'{platform} {primitive}': str(entry)
          for platform, table in [('any', mlir._lowerings), *mlir._platform_specific_lowerings.items()]
          for primitive, entry in table.items()},
      'configuration of JAX': {name: str(value) for name, value in jax.config.values.items()},
      'environment': dict(os.environ),
      'loggers': {
          str(name): str((logger.level, logger.filters, logger.handlers, logger.propagate, logger.disabled))
          for name, logger in loggers.items()},
      'warnings': [str(each) for each in warnings.filters],
  }

others = json.load(sys.stdin)
import_other_packages(others)
before = state()
found = import_package()
after = state()
changed = {}
for name in before:
  old, new = ((dict(enumerate(each[name])) if isinstance(each[name], list) else each[name]) for each in (before, after))
  changed[name] = sorted(f'{key}: {old.get(key)} -> {new.get(key)}' for key in old.keys() | new.keys()
                         if old.get(key) != new.get(key))
changed['flags'] = {module: names for module, names in found.items() if names}
others = [name for name in sys.modules if name.partition('.')[0] not in ('ddgan_jax', '__main__', '__mp_main__')]
print(json.dumps([changed, sorted(found), others]))
'''


def run(others):
  result = subprocess.run(
      [sys.executable, '-c', PROGRAM], input=json.dumps(others), cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def imported():
  """The changes made by importing every module, and the modules."""
  _, _, others = run([])
  changed, modules, _ = run(others)
  return changed, modules


def test_every_module_is_imported(imported):
  files = {path.relative_to(ROOT).with_suffix('') for path in (ROOT / 'ddgan_jax').rglob('*.py')}
  names = {'.'.join(path.parts).removesuffix('.__init__') for path in files} - {'ddgan_jax'}
  assert set(imported[1]) == names


@pytest.mark.parametrize('what', ['lowering rules', 'configuration of JAX', 'environment', 'loggers', 'warnings'])
def test_importing_every_module_changes_nothing(imported, what):
  assert imported[0][what] == []


def test_importing_every_module_defines_no_flags(imported):
  assert not imported[0]['flags']
