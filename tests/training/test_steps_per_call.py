"""Several steps in one compiled program: the same losses, R1 in the right steps, and the loop around it."""

import re
import signal

import jax
import numpy as np
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import main as train
from ddgan_jax import train_state, train_step
from ddgan_jax.data import pipeline
from ddgan_jax.objectives import penalties
from ddgan_jax.parallel import sharding
from tests.commands.test_main import interrupt, restored_state
from tests.support.commands import run_command

# MLPs, which compile in a second: these tests are about the inputs of each step.
TINY = {
    'data': {'name': 'gaussians25', 'image_size': 1, 'num_channels': 2, 'batch_size': 32},
    'generator': {'kind': 'mlp', 'num_channels_dae': 16, 'nz': 2},
    'discriminator': {'kind': 'mlp', 'ngf': 16, 't_emb_dim': 8},
    'optim': {'lazy_reg': 2, 'r1_gamma': 0.5},
    'train': {'num_steps': 12, 'log_every': 3, 'sample_every': 12, 'checkpoint_every': 6, 'steps_per_call': 3},
}
CONFIG = f'''
from ddgan_jax.config import recipes

def get_config():
  c = recipes.load('cifar10')
  c.data.flip = False
  for section, fields in {TINY!r}.items():
    c[section].update(fields)
  return c
'''


@pytest.mark.parametrize('parallel, devices, lazy_reg', [
    ({}, 1, 1), ({'fsdp': 2, 'accumulation': 2}, 4, 2)])
def test_several_steps_per_call_give_the_same_losses(parallel, devices, lazy_reg):
  """Six steps in two calls of three, the second of which begins without R1, against six single steps."""
  config = config_lib.from_config_dict(TINY | {'parallel': parallel, 'optim': TINY['optim'] | {'lazy_reg': lazy_reg}})
  mesh = sharding.make_mesh(jax.devices()[:devices], config.parallel.fsdp)
  images = np.random.default_rng(0).standard_normal((6, 32, 1, 1, 2), np.float32)
  shardings = sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh)))
  create = jax.jit(lambda: train_state.create(config, mesh), out_shardings=shardings)

  step_fns = {r1: train_step.make_step_fn(config, mesh, r1) for r1 in (False, True)}
  state, expected = create(), []
  for i, x_0 in enumerate(images):
    state, metrics = step_fns[penalties.r1(config.optim).is_due(i)](state, x_0)
    expected.append(jax.device_get(metrics))
  params = jax.device_get(state.ema_params)

  steps_fn = train_step.make_steps_fn(config, mesh)
  state, found = create(), []
  for call in range(2):
    state, metrics = steps_fn(state, images[3 * call:3 * call + 3])
    found += train_step.unstack_metrics(jax.device_get(metrics), 3 * call + 3, penalties.r1(config.optim))
  assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6] and int(state.step) == 6
  for (_, metrics), other in zip(found, expected, strict=True):
    assert metrics.keys() == other.keys()
    for name, value in metrics.items():
      assert value == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
               jax.device_get(state.ema_params), params)


def test_batches_are_stacked_in_order():
  closed = []

  def batches():
    try:
      for i in range(6):
        yield {'image': np.full((2, 1), i), 'label': np.array([i, i])}
    finally:
      closed.append(True)

  stacked = pipeline.stack_batches(batches(), 3)
  first = next(stacked)
  assert first['image'].shape == (3, 2, 1) and first['label'][:, 0].tolist() == [0, 1, 2]
  assert next(stacked)['image'][:, 0, 0].tolist() == [3, 4, 5] and next(stacked, None) is None and closed


def arguments(folder, *flags):
  (folder / 'tiny.py').write_text(CONFIG)
  return ['--config', str(folder / 'tiny.py'), *map(str, flags)]


def losses(printed):
  return re.findall(r'^step (\d+)/.*?loss_d (\S+)\s+loss_g (\S+)', printed, re.MULTILINE)


def test_a_run_logs_saves_and_resumes_like_single_steps(tmp_path):
  one = run_command(
      train.main, *arguments(tmp_path, '--workdir', tmp_path / 'one', '--config.train.steps_per_call=1'))
  assert one.status == 0, one.err
  status, printed = interrupt(arguments(tmp_path, '--workdir', tmp_path / 'three'), 'step 3/', signal.SIGTERM)
  stopped = int(re.search(r'SIGTERM: saved step (\d+)', printed)[1]) if 'SIGTERM' in printed else 12
  assert status == 0 and stopped % 3 == 0, printed
  three = run_command(train.main, *arguments(tmp_path, '--workdir', tmp_path / 'three'))
  assert three.status == 0, three.err
  resumed = dict((step, rest) for step, *rest in losses(printed) + losses(three.out))
  for step, *expected in losses(one.out):
    np.testing.assert_allclose([float(x) for x in resumed[step]], [float(x) for x in expected], atol=2e-3)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      *(jax.device_get(restored_state(tmp_path / name, 12).g_params) for name in ('one', 'three')))


@pytest.mark.parametrize('field', ['num_steps', 'log_every', 'sample_every', 'checkpoint_every', 'eval_every'])
def test_intervals_must_be_whole_calls(field):
  fields = TINY | {'train': TINY['train'] | {field: 7}}
  with pytest.raises(config_lib.ConfigError, match=rf'train\.{field} is 7; use a multiple of train\.steps_per'):
    config_lib.from_config_dict(fields)
