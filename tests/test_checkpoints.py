"""Checkpoints come back bit for bit, on other devices too; damaged ones are refused and left alone."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import sampling, sharding, train_state
from ddgan_jax.checkpoints import CheckpointError, Checkpoints, is_disk_full


def key_data(leaf):
  return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(key_data(x), key_data(y)), a, b)


def target(config, devices):
  return train_state.abstract(config, sharding.replicated(sharding.make_mesh(devices)))


@pytest.fixture(scope='module')
def state(tiny_config):
  """Every leaf different, so that none can be taken for another."""
  state = jax.jit(lambda: train_state.create(tiny_config))()
  return state.replace(
      step=state.step + 7,
      ema_params=jax.tree.map(lambda leaf: leaf + 0.5, state.ema_params),
      g_opt_state=jax.tree.map(lambda leaf: leaf + 3, state.g_opt_state))


@pytest.fixture
def saved(tmp_path, state, tiny_config):
  """A workdir with checkpoints 7 and 8."""
  (tmp_path / 'config.json').write_text(config_lib.to_json(tiny_config))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.save(state.replace(step=state.step + 1))
  checkpoints.close()
  return tmp_path


def test_round_trip_on_other_devices(saved, state, tiny_config):
  checkpoints = Checkpoints(saved)
  assert checkpoints.steps() == [7, 8]
  restored = checkpoints.restore(target(tiny_config, jax.devices()), 7)
  assert_same(restored, state)
  assert len(restored.g_params['conv_in']['kernel'].sharding.device_set) == 8
  assert_same(Checkpoints(saved).restore(target(tiny_config, jax.devices()[:1]), 7), state)


def test_only_the_newest_stay(tmp_path, state):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3, 4):
    checkpoints.save(state.replace(step=np.int32(step)))
  checkpoints.close()
  assert checkpoints.steps() == [3, 4]


def test_saving_a_step_again_while_it_is_being_saved_is_no_error(tmp_path, state):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.save(state)
  checkpoints.close()
  assert checkpoints.steps() == [7]


def test_an_unfinished_save_does_not_count(saved):
  shutil.copytree(saved / 'checkpoints' / '8', saved / 'checkpoints' / '9.orbax-checkpoint-tmp')
  assert Checkpoints(saved).latest_step() == 8


def test_load_for_sampling(saved, state, tiny_config):
  run = ddgan_jax.load(saved)
  assert run.step == 8 and run.config == tiny_config
  assert_same(run.params, state.ema_params)
  images = sampling.sample(jax.random.key(0), run.generator_fn, run.schedule, (2, *run.config.image_shape), 4)
  assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()


def damage_empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def damage_truncate(folder):
  for file in (folder / 'state').rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.write_bytes(file.read_bytes()[:10])


def damage_metadata(folder):
  (folder / 'state' / '_METADATA').unlink()
  (folder / 'state' / 'manifest.ocdbt').unlink()


def damage_bits(folder):
  """Inverts the middle third of the largest file."""
  file = max((f for f in (folder / 'state').rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)
  data = bytearray(file.read_bytes())
  third = len(data) // 3
  data[third:2 * third] = bytes(255 - byte for byte in data[third:2 * third])
  file.write_bytes(bytes(data))


def damage_digests(folder):
  shutil.rmtree(folder / 'digests')


@pytest.mark.parametrize('damage, message', [
    (damage_bits, '8: '),
    (damage_digests, '8: cannot be read'),
    (damage_empty, "8: holds nothing and no 'state'"),
    (damage_truncate, '8: cannot be read'),
    (damage_metadata, '8: '),
])
def test_damaged_is_refused_and_left_alone(saved, tiny_config, damage, message):
  folder = saved / 'checkpoints' / '8'
  damage(folder)
  before = {path: path.read_bytes() for path in saved.rglob('*') if path.is_file()}
  with pytest.raises(CheckpointError, match=message) as error:
    Checkpoints(saved).restore(target(tiny_config, jax.devices()[:1]), 8)
  assert 'nothing was changed; move that folder away to go on from step 7' in str(error.value)
  assert {path: path.read_bytes() for path in saved.rglob('*') if path.is_file()} == before
  with pytest.raises(CheckpointError, match=message):
    ddgan_jax.load(saved)


def test_another_architecture_is_refused(saved, tiny_config):
  wider = dataclasses.replace(
      tiny_config, generator=dataclasses.replace(tiny_config.generator, num_channels_dae=16))
  with pytest.raises(CheckpointError, match=r'but the config asks for float32\['):
    Checkpoints(saved).restore(target(wider, jax.devices()[:1]), 8)
  deeper = dataclasses.replace(tiny_config, generator=dataclasses.replace(tiny_config.generator, n_mlp=2))
  with pytest.raises(CheckpointError, match='has no .*latent_dense_2'):
    Checkpoints(saved).restore(target(deeper, jax.devices()[:1]), 8)


def test_load_says_what_is_missing(tmp_path, saved):
  with pytest.raises(CheckpointError, match='has no config.json'):
    ddgan_jax.load(tmp_path / 'nowhere')
  with pytest.raises(CheckpointError, match='nothing to load for step 3; its checkpoints are 7, 8'):
    ddgan_jax.load(saved, step=3)
  shutil.rmtree(saved / 'checkpoints')
  with pytest.raises(CheckpointError, match='nothing to load; it has no checkpoint yet'):
    ddgan_jax.load(saved)


def test_a_full_disk_is_recognised_wherever_it_is_reported():
  full = OSError(28, 'No space left on device')
  wrapped = ValueError('save failed')
  wrapped.__cause__ = full
  assert is_disk_full(full) and is_disk_full(wrapped)
  assert not is_disk_full(OSError(13, 'Permission denied'))


def test_a_state_that_was_not_saved_there_is_refused(saved, tiny_config):
  """Perfectly readable, which Orbax does not mind: only the digests tell."""
  shutil.rmtree(saved / 'checkpoints' / '8' / 'state')
  shutil.copytree(saved / 'checkpoints' / '7' / 'state', saved / 'checkpoints' / '8' / 'state')
  with pytest.raises(CheckpointError, match=r'8: step is not what was saved \(its digest differs\)'):
    Checkpoints(saved).restore(target(tiny_config, jax.devices()[:1]), 8)
