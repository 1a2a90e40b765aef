"""One run on devices and time slices in different ways: equal losses, less memory, and the communication."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.collectives import collectives, compile_step
from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.config import ConfigError
from ddgan_jax.parallel import compilation, sharding
from ddgan_jax.training import results
from tests.support import tiny_config_dict

BATCH = 64  # 8 devices x 4 microbatches x groups of 2 rows
LOSSES = ('loss_d_real', 'loss_d_fake', 'loss_g', 'r1_penalty')


def run_config(**parallel):
  fields = tiny_config_dict(batch_size=BATCH)
  fields['generator'] |= {'num_channels_dae': 16}
  fields['discriminator'] |= {'kind': 'tiny', 'ngf': 4, 'stddev_group': 2}
  fields['optim'] |= {'lazy_reg': 1, 'lr_g': 1e-3, 'lr_d': 1e-3}  # R1 in every step: one program to compile
  return config_lib.from_config_dict({**fields, 'parallel': parallel})


@functools.cache
def compiled_step(config, num_devices, with_r1=True):
  config_lib.check_devices(config, num_devices)
  mesh = sharding.make_mesh(jax.devices()[:num_devices], config.parallel.fsdp)
  return mesh, compile_step(config, mesh, with_r1)


def random_state(config):
  """A state with random parameters; initial ones give outputs so near 0 that the losses of any two runs agree."""
  rng = np.random.default_rng(0)

  def fill(leaf):
    scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
    return rng.standard_normal(leaf.shape, np.float32) * np.float32(scale)

  shapes = jax.eval_shape(lambda: train_state.create(config))
  g_params, d_params = jax.tree.map(fill, shapes.g_params), jax.tree.map(fill, shapes.d_params)
  moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (shapes.g_opt_state, shapes.d_opt_state))
  return train_state.TrainState(np.int32(0), jax.random.key(0), g_params, d_params, g_params, *moments)


@functools.cache
def run(num_devices, *, num_steps=6, **parallel):
  """The losses [num_steps, 4] of a run and its last state."""
  config = run_config(**parallel)
  mesh, step = compiled_step(config, num_devices)
  state = jax.device_put(
      random_state(config), sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh))))
  rng = np.random.default_rng(1)
  losses = []
  for _ in range(num_steps):
    images = np.tanh(rng.standard_normal((BATCH, *config.image_shape), np.float32))
    state, metrics = step(state, jax.device_put(images, sharding.batch_sharding(mesh)))
    losses.append([metrics[name] for name in LOSSES])
  return np.asarray(losses), state


@pytest.mark.parametrize('parallel, num_steps', [
    ({}, 6),
    ({'fsdp': 4}, 6),
    ({'accumulation': 4, 'remat': True}, 4),  # each of these takes about twenty times as long on a CPU
], ids=str)
def test_losses_do_not_depend_on_the_parallelism(parallel, num_steps):
  expected, _ = run(1)
  losses, state = run(8, num_steps=num_steps, **parallel)
  assert (np.ptp(expected, axis=0) > 0.2 * np.abs(expected).max(axis=0)).all()  # the losses vary enough to compare
  np.testing.assert_allclose(losses, expected[:num_steps], rtol=1e-4)
  assert int(state.step) == num_steps


def device_bytes(state, device):
  arrays = [leaf for leaf in jax.tree.leaves(state) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
  return sum(part.data.nbytes for leaf in arrays for part in leaf.addressable_shards if part.device == device)


def test_fsdp_shards_the_state():
  _, replicated = run(8, num_steps=6)
  _, sharded = run(8, num_steps=6, fsdp=4)
  for device in jax.devices():
    assert device_bytes(sharded, device) < 0.35 * device_bytes(replicated, device)  # a quarter, plus small arrays
  kernel = sharded.ema_params['middle_block_0']['conv_0']['kernel']
  for leaf in (kernel, sharded.g_opt_state[0].mu['middle_block_0']['conv_0']['kernel']):
    assert leaf.shape == (3, 3, 16, 16) and leaf.addressable_shards[0].data.shape == (3, 3, 4, 16)
  assert sharded.g_params['conv_in']['bias'].sharding.is_fully_replicated


def test_fsdp_gives_the_same_sample_grid(quick_config):
  """The sample grid of a sharded state equals that of a replicated one."""
  config = dataclasses.replace(quick_config, train=dataclasses.replace(quick_config.train, num_samples=8))
  params = random_state(config).ema_params
  images = []
  for fsdp in (1, 8):
    mesh = sharding.make_mesh(fsdp=fsdp)
    abstract = train_state.abstract_state(config, sharding.state_sharding(mesh)).ema_params
    images.append(np.asarray(results.make_sample_fn(config, mesh, abstract)(
        jax.device_put(params, sharding.tree_shardings(abstract)))).astype(int))
  assert np.abs(images[0] - images[1]).max() <= 1 and np.ptp(images[0]) > 20


@pytest.mark.parametrize('with_r1', [False, True])
def test_data_parallel_communicates_gradients_once(quick_config, with_r1):
  """An all-reduce of each network's gradient, scalars, and nothing else; compiled with the tests' fewer passes."""
  config = run_config() if with_r1 else quick_config
  _, step = compiled_step(config, 8, with_r1)
  state = train_state.abstract_state(config, None)
  found = collectives(step.as_text())
  assert {c.kind for c in found} == {'all-reduce'} and {c.participants for c in found} == {8}
  assert not any(c.in_loop for c in found)
  first, second = (c.bytes for c in found if c.bytes > 64)  # first D's, on which G's depends
  for params, size in ((state.d_params, first), (state.g_params, second)):
    # A little less if two arrays have the same gradient, like the biases of a sum.
    assert 0.98 < size / (4 * train_state.count_parameters(params)) <= 1.02
  assert sum(c.bytes for c in found) <= 64 + first + second


def test_fsdp_communicates_shards():
  """D is gathered before and after its update G once; gradients are reduce-scattered, then all-reduced in shards."""
  config = run_config(fsdp=4)
  _, step = compiled_step(config, 8)
  state = train_state.abstract_state(config, sharding.state_sharding(sharding.make_mesh(fsdp=4)))
  d_sharded, g_sharded = (
      sum(4 * leaf.size for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated)
      for params in (state.d_params, state.g_params))
  sums = {}
  found = collectives(step.as_text())
  for c in found:
    sums[c.kind, c.participants] = sums.get((c.kind, c.participants), 0) + c.bytes
  assert sums['all-gather', 4] == 2 * d_sharded + g_sharded
  assert sums['reduce-scatter', 4] == d_sharded + g_sharded
  assert sums['all-reduce', 2] == (d_sharded + g_sharded) // 4
  kinds = {('all-gather', 4), ('reduce-scatter', 4), ('all-reduce', 2), ('all-reduce', 8), ('all-reduce', 4)}
  assert set(sums) == kinds
  norms = [c for c in found if (c.kind, c.participants) == ('all-reduce', 4)]  # gradient norms, array by array
  assert all(shape == () for c in norms for _, shape in c.arrays)


def test_a_sharded_state_is_initialised_without_communication():
  config = run_config(fsdp=8)
  mesh = sharding.make_mesh(jax.devices(), fsdp=8)
  shardings = sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh)))
  create = jax.jit(lambda: train_state.create(config, mesh), out_shardings=shardings).lower().compile()
  assert collectives(create.as_text()) == []
  on_one_device = jax.jit(lambda: train_state.create(config))()
  jax.tree.map(np.testing.assert_array_equal, create().g_params, on_one_device.g_params)
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(create().g_params))


def test_collectives_are_parsed_from_compiled_text():
  """Tuples, asynchronous forms, layouts, loops: lines as written by the compilers for CPU, GPU and TPU."""
  found = collectives('''
%body.1 (arg: f32[8]) -> f32[8] {
  %permuted = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%arg), source_target_pairs={{0,1}}
}
ENTRY %main.2 (a: f32[2]) -> f32[] {
  %ar = (f32[3,3]{1,0:T(8,128)}, /*index=1*/bf16[4]{0}) all-reduce(%a, %b), replica_groups=[1,8]<=[8], to_apply=%add
  %ags = (f32[2]{0}, f32[16]{0}) all-gather-start(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ags)
  %rs = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, metadata={op_name="jit(f)"}
  %ms = f32[] all-reduce(%a), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, to_apply=%add
  %w = f32[8] while(%p), condition=%cond, body=%body.1
}
''')
  assert [(c.kind, c.bytes, c.participants, c.in_loop) for c in found] == [
      ('collective-permute', 32, 0, True), ('all-reduce', 44, 8, False), ('all-gather', 64, 8, False),
      ('reduce-scatter', 32, 4, False), ('all-reduce', 4, 4, False)]
  assert found[1].wire_bytes == 2 * 7 / 8 * 44 and found[3].wire_bytes == 3 / 4 * 32 and found[3].source == 'jit(f)'


def test_accumulation_and_remat_need_less_memory():
  memory = [compilation.memory_bytes(compiled_step(run_config(**parallel), 8)[1])[0]
            for parallel in ({}, {'accumulation': 4, 'remat': True})]
  assert memory[1] < memory[0]


def test_bfloat16_keeps_a_float32_state():
  config = run_config(dtype='bfloat16')
  state = jax.eval_shape(lambda: train_state.create(config))
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(dataclasses.replace(state, rng=None))}
  assert dtypes == {jnp.dtype('float32'), jnp.dtype('int32')}


@pytest.mark.parametrize('remat', [False, True])
def test_remat_recomputes_blocks(remat):
  """In the backward passes of both networks."""
  config = run_config(remat=remat)
  for network, args in zip(train_state.make_networks(config), (
      (np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int32), np.zeros((4, 4), np.float32)),
      (np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int32), np.zeros((4, 8, 8, 1), np.float32)))):
    params = jax.eval_shape(network.init, jax.random.key(0), *args)
    loss = lambda params, network=network, args=args: network.apply(params, *args).sum()
    assert ('remat' in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat


@pytest.mark.parametrize('parallel, batch_size, message', [
    ({'fsdp': 3}, 128, r'parallel\.fsdp is 3; use a divisor of the number of devices, 8$'),
    ({'fsdp': 16}, 128, r'parallel\.fsdp is 16; use a divisor'),
    ({'accumulation': 3}, 128, r'data\.batch_size is 128; use a multiple of 96: 8 devices, times 3 micro'),
    ({'accumulation': 4}, 64, r'data\.batch_size is 64; use a multiple of 128: 8 devices, times 4 micro'),
    ({}, 16, r'data\.batch_size is 16; use a multiple of 32: 8 devices, times 4 rows'),
], ids=str)
def test_settings_that_do_not_fit_eight_devices_are_refused(parallel, batch_size, message):
  config = config_lib.from_config_dict({**tiny_config_dict(batch_size=batch_size), 'parallel': parallel})
  with pytest.raises(ConfigError, match=message):
    config_lib.check_devices(config, 8)
  config_lib.check_devices(dataclasses.replace(config, parallel=config_lib.ParallelConfig()), 1)


@pytest.mark.parametrize('field', ['fsdp', 'accumulation'])
def test_zero_is_refused(field):
  with pytest.raises(ConfigError, match=f'parallel.{field} is 0; use at least 1'):
    run_config(**{field: 0})
