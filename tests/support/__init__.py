"""What the tests share: golden numbers, tiny configs, and the environment of commands."""

import contextlib
import json
import os
import pathlib
import tracemalloc
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = ROOT / 'tests' / 'golden'


def xla_flags(num_devices):
  """XLA_FLAGS for `num_devices` simulated devices; the older fusion emitters halve the compilation time."""
  return f'--xla_force_host_platform_device_count={num_devices} --xla_cpu_use_fusion_emitters=false'


def golden(name):
  """The arrays of a golden file, and its decoded `config`."""
  arrays = dict(np.load(GOLDEN / name))
  return arrays, json.loads(str(arrays.pop('config')))


def recipe(name, shape):
  """A weight of a golden case: a function of the original's tensor name and shape."""
  x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  if len(shape) >= 2:
    fan_in = shape[0] if name.endswith('.W') else np.prod(shape[1:])
    return x / np.float32(np.sqrt(fan_in))
  if name.endswith('weight'):
    return 1 + np.float32(0.1) * x
  return np.float32(0.1) * x


def state_dict(param_names):
  """The weights of a golden case, from its `name|shape` rows."""
  rows = (str(row).split('|') for row in param_names)
  return {name: recipe(name, json.loads(shape)) for name, shape in rows}


def nhwc(x):
  return x.transpose(0, 2, 3, 1)


def relative_error(found, expected):
  """The largest difference, relative to the largest expected value."""
  return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def generator_config(options):
  """GeneratorConfig from a golden case's options, which include fields of other sections."""
  import dataclasses

  from ddgan_jax.config import GeneratorConfig

  known = {field.name for field in dataclasses.fields(GeneratorConfig)}
  return GeneratorConfig(**{k: v for k, v in options.items() if k in known})


def tiny_config_dict(**data):
  """A run on 8x8 digits that compiles in seconds."""
  return {
      'data': {'name': 'digits', 'image_size': 8, 'num_channels': 1, 'batch_size': 32, **data},
      'diffusion': {'num_timesteps': 2},
      'generator': {
          'num_channels_dae': 8, 'ch_mult': (1,), 'num_res_blocks': 1, 'attn_resolutions': (), 'nz': 4, 'z_emb_dim': 8,
          'n_mlp': 1},
      'discriminator': {'kind': 'tiny', 'ngf': 2, 't_emb_dim': 8},
      'optim': {'lazy_reg': 4, 'ema_decay': 0.9, 'r1_gamma': 0.5},
      'train': {
          'num_steps': 200, 'log_every': 1, 'sample_every': 100, 'checkpoint_every': 50, 'num_samples': 4},
  }


def quick_config_dict(**data):
  """The same run with MLPs, which compile four times as fast: for tests that are not about the networks."""
  fields = tiny_config_dict(**data)
  return {**fields, 'generator': {**fields['generator'], 'kind': 'mlp', 'num_channels_dae': 16},
          'discriminator': {**fields['discriminator'], 'kind': 'mlp', 'ngf': 16},
          'train': {**fields['train'], 'num_steps': 40, 'sample_every': 20, 'checkpoint_every': 10}}


def config_text(fields):
  """The text of a --config file: the recipe cifar10 with these fields, by section."""
  return f'''
"""A tiny run for the tests of the commands."""
import ml_collections
from ddgan_jax.config import recipes

def get_config():
  c = recipes.load('cifar10')
  for section, fields in {fields!r}.items():
    c[section].update(fields)
  return c
'''


def command_environment(num_devices=1, events='none'):
  """The environment of a command: its simulated devices, and how it writes events.

  `events` is 'none', as if TensorFlow were not installed; 'scalars', for `scalars.read`; or 'tensorflow'. Commands
  start sooner without TensorFlow.
  """
  environment = {**os.environ, 'XLA_FLAGS': xla_flags(num_devices), 'PYTHONUNBUFFERED': '1'}
  if events != 'tensorflow':
    stub = pathlib.Path(__file__).parent / {'none': 'without_tensorflow', 'scalars': 'scalars_only'}[events]
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(stub), os.environ.get('PYTHONPATH')]))
  return environment


@contextlib.contextmanager
def little_memory(limit=2**24):
  """Checks that at most `limit` bytes are allocated at any time, also if an exception is raised."""
  tracemalloc.start()
  try:
    yield
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= limit
