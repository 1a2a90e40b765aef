"""Checkpoints are restored bit for bit, on any devices; damaged ones are refused by name, and kept."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import sampling, train_state
from ddgan_jax.parallel import sharding
from ddgan_jax.runs import checkpoints as checkpoints_lib
from ddgan_jax.runs.checkpoints import CheckpointError, Checkpoints, DamagedError, NotFiniteError, is_disk_full


def key_data(leaf):
  return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(key_data(x), key_data(y)), a, b)


def target(config, devices):
  return train_state.abstract_state(config, sharding.replicated(sharding.make_mesh(devices)))


@pytest.fixture(scope='module')
def state(quick_config):
  """All leaves differ, so that none can be mistaken for another."""
  state = jax.jit(lambda: train_state.create(quick_config))()
  return state.replace(
      step=state.step + 7,
      ema_params=jax.tree.map(lambda leaf: leaf + 0.5, state.ema_params),
      g_opt_state=jax.tree.map(lambda leaf: leaf + 3, state.g_opt_state))


@pytest.fixture
def saved(tmp_path, state, quick_config):
  """A workdir with checkpoints 7 and 8."""
  (tmp_path / 'config.json').write_text(config_lib.to_json(quick_config))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.save(state.replace(step=state.step + 1))
  checkpoints.close()
  return tmp_path


def test_round_trip_on_other_devices(saved, state, quick_config):
  checkpoints = Checkpoints(saved)
  assert checkpoints.steps() == [7, 8]
  restored = checkpoints.restore(target(quick_config, jax.devices()), 7)
  assert_same(restored, state)
  assert len(restored.g_params['dense_0']['kernel'].sharding.device_set) == 8
  assert_same(Checkpoints(saved).restore(target(quick_config, jax.devices()[:1]), 7), state)


def test_only_the_newest_are_kept(tmp_path, state):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3, 4):
    checkpoints.save(state.replace(step=np.int32(step)))
  checkpoints.close()
  assert checkpoints.steps() == [3, 4]


def test_saving_a_step_twice_is_not_an_error(tmp_path, state):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.save(state)
  checkpoints.close()
  assert checkpoints.steps() == [7]


def test_an_unfinished_save_does_not_count(saved):
  shutil.copytree(saved / 'checkpoints' / '8', saved / 'checkpoints' / '9.orbax-checkpoint-tmp')
  assert Checkpoints(saved).latest_step() == 8


def test_load_for_sampling(saved, state, quick_config):
  run = ddgan_jax.load(saved)
  assert run.step == 8 and run.config == quick_config
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
  """Inverts the files of the arrays except for their first bytes; Orbax does not fix which array is in which file."""
  for file in (folder / 'state').rglob('d/*'):
    data = file.read_bytes()
    file.write_bytes(data[:64] + bytes(255 - byte for byte in data[64:]))


def damage_digests(folder):
  shutil.rmtree(folder / 'digests')


@pytest.mark.parametrize('damage, message', [
    (damage_bits, '8: .*(digest differs|cannot be read)'),
    (damage_digests, '8: cannot be read'),
    (damage_empty, "8: contains nothing but no 'state'"),
    (damage_truncate, '8: .*(digest differs|cannot be read)'),
    (damage_metadata, '8: .*cannot be read'),
])
def test_the_newest_undamaged_checkpoint_is_used(saved, state, quick_config, damage, message, capsys):
  """Sampling changes no file; training renames the damaged checkpoint, and can save its step again."""
  folder = saved / 'checkpoints' / '8'
  damage(folder)
  before = read_files(saved)
  with pytest.raises(DamagedError, match=message):
    ddgan_jax.load(saved, step=8)
  assert ddgan_jax.load(saved).step == 7
  messages = capsys.readouterr().out
  assert re.search(f'{folder.parent}/{message}', messages) and 'using step 7 instead.\n' in messages
  assert read_files(saved) == before

  checkpoints, messages = Checkpoints(saved), []
  restored = checkpoints.restore_newest(target(quick_config, jax.devices()[:1]), messages.append)
  assert_same(restored, state)
  assert re.search(message, messages[0]) and messages[1].endswith('8.damaged.') and len(messages) == 2
  assert {str(path).replace('8.damaged', '8'): data for path, data in read_files(saved).items()} == {
      str(path): data for path, data in before.items()}
  checkpoints.save(restored.replace(step=restored.step + 1))
  checkpoints.close()
  assert checkpoints.steps() == [7, 8]
  assert_same(Checkpoints(saved).restore(target(quick_config, jax.devices()[:1]), 8).g_params, state.g_params)


def read_files(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_no_undamaged_checkpoint_is_left(saved, quick_config):
  damage_empty(saved / 'checkpoints' / '8')
  damage_digests(saved / 'checkpoints' / '7')
  before = read_files(saved)
  for attempt in (lambda: ddgan_jax.load(saved), lambda: Checkpoints(saved).restore_newest(
      target(quick_config, jax.devices()[:1]), print)):
    with pytest.raises(CheckpointError, match="8: contains nothing .*7: cannot be read .*no good checkpoint is left"):
      attempt()
  assert read_files(saved) == before


@pytest.fixture
def save(tmp_path, state):
  """Saves steps, each with its metrics; returns the steps that are kept."""
  def save(steps):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, metrics in steps.items():
      checkpoints.save(state.replace(step=np.int32(step)))
      if metrics:
        checkpoints.record_metrics(step, {f'eval/{name}': value for name, value in metrics.items()})
      checkpoints.wait()
      assert step in checkpoints.steps()
    checkpoints.close()
    return checkpoints.steps()

  return save


def test_the_best_and_the_newest_are_kept(save, tmp_path):
  """Also after a restart, and for checkpoints without metrics."""
  assert save({1: {'fid': 9.0}, 2: {'fid': 5.0}, 3: {'fid': 7.0}, 4: None, 5: {'fid': 8.0}}) == [2, 4, 5]
  assert Checkpoints(tmp_path).metrics(2) == {'eval/fid': 5.0} and Checkpoints(tmp_path).metrics(4) == {}
  assert save({6: {'fid': 6.0}, 7: {'fid': 6.5}}) == [2, 6, 7]
  assert save({8: {'fid': 1.0}}) == [7, 8]  # at once, not only at the next save
  assert save({9: None, 10: None}) == [8, 9, 10]


def test_the_best_is_kept_whatever_is_measured_later(save):
  """A resumed run may measure another metric, or nothing; a non-finite value ranks nothing."""
  assert save({1: {'fid': 5.0, 'is': 2.0}, 2: {'fid': 9.0}, 3: {'fid': 7.0}}) == [1, 2, 3]
  assert save({4: None, 5: {'is': 3.0}, 6: None}) == [1, 5, 6]
  assert save({7: {'kid': 0.2}, 8: {'fd_classifier': 3.0, 'mode_kl': 0.1}, 9: {'kid': 0.3}, 10: {'kid': np.nan}}) == [
      1, 7, 8, 9, 10]
  assert save({11: {'fid': 4.0}, 12: None}) == [7, 8, 11, 12]


@pytest.mark.parametrize('text', ['', '{"eval/fid": 1', '[1.0]', '3', '{"eval/fid": null}', '{"eval/fid": "1"}'])
def test_damaged_metrics_are_ignored(save, tmp_path, text):
  save({1: {'fid': 5.0}, 2: {'fid': 6.0}})
  (tmp_path / 'checkpoints' / '2' / 'metrics.json').write_text(text)
  assert Checkpoints(tmp_path).metrics(2) == {}
  assert save({3: None, 4: None}) == [1, 3, 4]


def test_a_checkpoint_with_unreadable_metrics_is_kept(save, monkeypatch):
  save({1: {'fid': 5.0}, 2: {'fid': 6.0}})
  read = Checkpoints.metrics

  def fail(self, step):
    if step == 1:
      raise OSError(5, 'Input/output error')
    return read(self, step)

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'metrics', fail)
    assert save({3: None, 4: None}) == [1, 2, 3, 4]
  assert save({5: None}) == [1, 4, 5]


def test_metrics_stored_by_orbax_are_used(save, tmp_path, state):
  """As in runs of the first versions."""
  with ocp.CheckpointManager(
      tmp_path / 'checkpoints', options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: -metrics['eval/fid'])
  ) as manager:
    manager.save(1, metrics={'eval/fid': 2.0, 'eval/is': 3.0}, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), digests=ocp.args.JsonSave({})))
  assert Checkpoints(tmp_path).metrics(1) == {'eval/fid': 2.0, 'eval/is': 3.0}
  assert save({2: {'fid': 9.0}, 3: None, 4: None}) == [1, 3, 4]


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_states_are_never_saved(tmp_path, state, value):
  checkpoints = Checkpoints(tmp_path)
  d_params = jax.tree.map(np.array, state.d_params)
  jax.tree.leaves(d_params)[-1].reshape(-1)[-1] = value
  with pytest.raises(NotFiniteError, match='d_params.* not finite at step 7, which was not saved'):
    checkpoints.save(state.replace(d_params=d_params))
  checkpoints.close()
  assert checkpoints.steps() == []


def test_digests_do_not_depend_on_the_sharding():
  """Rows or columns over 8 devices, replicated, or on the host; for every dtype of a state."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'))
  for dtype in ('float32', 'bfloat16', 'int32', 'uint32'):
    host = np.arange(8 * 16).reshape(8, 16).astype(jnp.dtype(dtype))
    found = [checkpoints_lib._digests({'x': jax.device_put(host, jax.sharding.NamedSharding(mesh, spec))})[0]['x']
             for spec in (P(), P('a'), P(None, 'b'), P('b', 'a'))]
    assert found == [checkpoints_lib._digests({'x': host})[0]['x']] * 4
    assert checkpoints_lib._digests({'x': host.T})[0]['x'] != found[0]


def test_another_architecture_is_refused(saved, quick_config, tiny_config):
  wider = dataclasses.replace(
      quick_config, generator=dataclasses.replace(quick_config.generator, num_channels_dae=32))
  with pytest.raises(CheckpointError, match=r'but float32\[32\] with this config'):
    Checkpoints(saved).restore(target(wider, jax.devices()[:1]), 8)
  with pytest.raises(CheckpointError, match='has no .*conv_in'):
    Checkpoints(saved).restore(target(tiny_config, jax.devices()[:1]), 8)


def test_load_says_what_is_missing(tmp_path, saved):
  with pytest.raises(CheckpointError, match='has no config.json'):
    ddgan_jax.load(tmp_path / 'nowhere')
  with pytest.raises(CheckpointError, match='has no checkpoint of step 3; use one of 7, 8'):
    ddgan_jax.load(saved, step=3)
  shutil.rmtree(saved / 'checkpoints')
  with pytest.raises(CheckpointError, match='has no checkpoint yet'):
    ddgan_jax.load(saved)


def test_a_full_disk_is_recognised_in_wrapped_errors():
  full = OSError(28, 'No space left on device')
  wrapped = ValueError('save failed')
  wrapped.__cause__ = full
  assert is_disk_full(full) and is_disk_full(wrapped)
  assert not is_disk_full(OSError(13, 'Permission denied'))


def test_the_state_of_another_step_is_refused(saved, quick_config):
  """Its files are valid and Orbax reads them; only the digests differ."""
  shutil.rmtree(saved / 'checkpoints' / '8' / 'state')
  shutil.copytree(saved / 'checkpoints' / '7' / 'state', saved / 'checkpoints' / '8' / 'state')
  with pytest.raises(CheckpointError, match=r'8: step has changed since it was saved \(its digest differs\)'):
    Checkpoints(saved).restore(target(quick_config, jax.devices()[:1]), 8)
