"""A run that starts from another run's networks."""

import dataclasses

import jax
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import main as train
from ddgan_jax import train_state
from ddgan_jax.config import ConfigError
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs import init_from
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop
from tests.commands.test_toy_run import SMALL
from tests.objectives.test_successors import run_config
from tests.support.commands import run_command, succeed


def from_run(config, path):
  return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(path)))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A DDGAN and a Gaussian run of three steps, with the same G."""
  folder = tmp_path_factory.mktemp('runs')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
    for method in ('ddgan', 'gaussian'):
      config = run_config(method)
      config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=3))
      loop.train_and_evaluate(config, str(folder / method))
  return folder


@pytest.mark.parametrize('source, method, taken', [
    ('ddgan', 'rduot', 'G and D'), ('ddgan', 'siddm', 'G'), ('gaussian', 'siddm', 'G')])
def test_networks_are_those_of_the_other_run(runs, source, method, taken):
  """G and the EMA are its EMA, D its D; the optimizers, the step and the key are new."""
  config = from_run(run_config(method), runs / source)
  init_from.check(config)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = train_state.abstract_state(config, device)
  created = jax.jit(lambda: train_state.create(config))()
  state, sentence = init_from.initialize(created, config, abstract, log=pytest.fail)
  assert sentence == f'Starts with {taken} of {runs / source} at step 3 (train.init_from).'
  other = Checkpoints(str(runs / source)).restore(train_state.abstract_state(run_config(source), device), 3)
  expected = created.replace(
      g_params=other.ema_params, ema_params=other.ema_params,
      d_params=other.d_params if taken == 'G and D' else created.d_params)
  for name in ('step', 'g_params', 'd_params', 'ema_params', 'g_opt_state', 'd_opt_state'):
    jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(expected, name))
  for a, b in zip(jax.tree.leaves(state.g_params), jax.tree.leaves(state.ema_params), strict=True):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # the state is donated to the step


def test_a_run_starts_from_another_and_resumes_without_it(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  succeed(train.main, '--config', 'gaussians25', '--workdir', first, *SMALL)
  arguments = ('--config', 'gaussians25', '--workdir', second, *SMALL, '--config.method=rduot',
               f'--config.train.init_from={first}')
  assert f'Starts with G and D of {first} at step 20' in succeed(train.main, *arguments)
  first.rename(tmp_path / 'moved')
  output = succeed(train.main, *arguments, '--config.train.num_steps=30')
  assert 'Resumed at step 20' in output and 'Starts with' not in output
  result = run_command(train.main, *arguments[:-1], f'--config.train.init_from={tmp_path}')
  assert result.status == 2 and 'but' in result.err and 'has trained already; use another --workdir' in result.err
  result = run_command(train.main, *arguments[:3], tmp_path / 'third', *arguments[4:])
  assert result.status == 2 and result.err.startswith(f"Error: train.init_from is '{first}'; use the workdir of a run")


@pytest.mark.parametrize('fields, message', [
    ({'generator': {'num_channels_dae': 16}},
     'but generator.num_channels_dae is 16; use 8, as in that run, or use another run'),
    ({'diffusion': {'num_timesteps': 2}}, 'but diffusion.num_timesteps is 2; use 4, as in that run'),
])
def test_other_networks_are_refused(runs, fields, message):
  nested = config_lib.to_dict(run_config('ddgan'))
  for section, values in fields.items():
    nested[section] |= values
  with pytest.raises(ConfigError, match=message):
    init_from.check(from_run(config_lib.from_config_dict(nested), runs / 'gaussian'))
