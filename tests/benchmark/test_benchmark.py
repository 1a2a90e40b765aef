"""The benchmark: operation counts against hand counts and XLA, peak FLOPS, timing, and the command on a tiny run."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ddgan_jax import config as config_lib
from ddgan_jax import train_state
from ddgan_jax.benchmark import __main__ as benchmark
from ddgan_jax.benchmark import flops, peak_flops, performance, timing
from ddgan_jax.config import Config, DataConfig, DiscriminatorConfig, GeneratorConfig
from tests.support import ROOT, command_environment, config_text, quick_config_dict
from tests.support.commands import run_command

ENVIRONMENT = command_environment(2)


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def convolution(x, kernel, stride=1):
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def test_counts_convolutions_products_and_loops():
  x, kernel = shape(2, 8, 8, 4), shape(3, 3, 4, 16)
  forward = 2 * (2 * 8 * 8 * 16) * (3 * 3 * 4)
  assert flops.count(convolution, x, kernel) == forward
  assert flops.count(lambda x, k: convolution(x, k, 2), x, kernel) == forward / 4
  # The backward pass to both arguments costs twice the forward pass, strided or not.
  loss = lambda x, k, stride: (convolution(x, k, stride) ** 2).sum()
  for stride, share in ((1, 1), (2, 4)):
    gradient = lambda x, k, stride=stride: jax.grad(loss, argnums=(0, 1))(x, k, stride)
    assert flops.count(gradient, x, kernel) == 3 * forward / share
  product = 2 * 5 * 6 * 7
  assert flops.count(jnp.matmul, shape(5, 6), shape(6, 7)) == product
  looped = lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, length=3)[0]
  assert flops.count(looped, shape(5, 6), shape(6, 6)) == 3 * 2 * 5 * 6 * 6


def test_flops_of_an_mlp_run_match_a_hand_count():
  """Networks of matrix products only, counted by hand: 4 G and 8 D per step, less the unused input gradients."""
  width, ngf, nz, emb, group = 16, 8, 4, 8, 4
  config = Config(
      data=DataConfig(name='gaussians25', image_size=1, num_channels=2, batch_size=8),
      generator=GeneratorConfig(kind='mlp', image_size=1, num_channels=2, num_channels_dae=width, nz=nz, ch_mult=(1,)),
      discriminator=DiscriminatorConfig(
          kind='mlp', image_size=1, num_channels=2, ngf=ngf, t_emb_dim=emb, stddev_group=group))
  kernels = [
      leaf.size for leaf in jax.tree.leaves(train_state.abstract_state(config, None).g_params) if leaf.ndim == 2]
  assert flops.sample_flops(config) == config.diffusion.num_timesteps * 2 * sum(kernels)


def test_flops_of_the_published_cifar10_generator():
  """G of CIFAR-10: XLA counts 14.1 GFLOP in the compiled program, nearly all of it in products."""
  assert flops.sample_flops(Config()) / 4 == pytest.approx(14.1e9, rel=0.03)


def test_peak_flops_by_device_kind():
  for kind, bfloat16, float32 in (
      ('NVIDIA H100 80GB HBM3', 989e12, 494e12), ('NVIDIA H100 PCIe', 756e12, 378e12),
      ('NVIDIA A100-SXM4-40GB', 312e12, 156e12), ('Tesla V100-SXM2-16GB', None, 15.7e12), ('NVIDIA L4', 121e12, 60e12),
      ('Tesla T4', None, 8.1e12), ('NVIDIA L40S', 362e12, 183e12), ('TPU v5 lite', 197e12, 197e12),
      ('TPU v5', 459e12, 459e12), ('TPU v4', 275e12, 275e12), ('TPU v6 lite', 918e12, 918e12)):
    assert peak_flops.peak(kind) == {'bfloat16': bfloat16, 'float32': float32}, kind
  for kind in ('cpu', 'NVIDIA L400', 'Quadro T400'):
    assert peak_flops.peak(kind) == {}


def test_timed_runs_are_interleaved():
  order = []
  runs = {name: lambda name=name: order.append(name) for name in 'ab'}
  timings = timing.time_interleaved(runs, rounds=3)
  assert order == list('aabb' + 'ab' * 3)
  assert {name: len(times.seconds) for name, times in timings.items()} == {'a': 3, 'b': 3}
  assert timing.Timing((3.0, 1.0, 2.0)).median == 2.0


@pytest.mark.parametrize('data, generator, channels', [
    ({}, {'num_classes': 10}, 1), ({'num_channels': 3, 'stack': 3}, {}, 3),
    ({'num_channels': 3, 'stack': 3}, {'num_classes': 10}, 3)])
def test_programs_take_labels_and_stacked_images(data, generator, channels):
  """The step's inputs match the pipeline's batches of random images, for one step and several steps per call."""
  fields = quick_config_dict(**data)
  fields['generator'].update(generator)
  for steps_per_call in (1, 2):
    fields['train'].update(steps_per_call=steps_per_call, log_every=2)
    config = config_lib.from_config_dict(fields)
    programs = performance.Programs(config)
    lowered = programs.lower(programs.steps[0])
    batch = performance.first_batch(programs, performance.random_images(config))
    image = (32, 8, 8, channels)
    assert batch[0].shape == (image if steps_per_call == 1 else (2, *image))
    assert [(x.shape, x.dtype) for x in batch] == [(x.shape, x.dtype) for x in lowered.in_avals[0][1:]]


def test_programs_are_compiled_ahead_of_use(monkeypatch):
  programs = performance.Programs(config_lib.from_config_dict(quick_config_dict()))
  lowered = []
  monkeypatch.setattr(programs, 'lower', lambda name: lowered.append(name) or jax.jit(lambda: len(name)).lower())
  programs.compile(['plain', 'sample_1'])
  assert lowered == ['plain', 'sample_1']
  assert (int(programs['plain']()), int(programs['sample_1']())) == (5, 8) and lowered == ['plain', 'sample_1']


def test_command(tmp_path):
  (tmp_path / 'tiny.py').write_text(config_text(quick_config_dict()))
  command = [
      sys.executable, '-m', 'ddgan_jax.benchmark', '--config', tmp_path / 'tiny.py', '--out', tmp_path / 'b.json',
      '--profile', tmp_path / 'trace', '--repeats', 2, '--seconds', 0, '--data_steps', 2, '--sample_batches', '1,4']
  result = subprocess.run(
      list(map(str, command)), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
  assert result.returncode == 0, result.stderr
  report = json.loads((tmp_path / 'b.json').read_text())
  assert report['device'] | {'peak': 0} == {'platform': 'cpu', 'kind': 'cpu', 'devices': 2, 'peak': 0}
  assert "No published peak of 'cpu' in float32" in result.stdout and report['device']['peak'] == {}
  assert set(report['compile']) == {'plain', 'r1', 'sample_1', 'sample_4'}
  train, lazy_reg = report['train'], report['config']['optim']['lazy_reg']
  assert train['amortised']['seconds'] == pytest.approx(
      (train['r1']['seconds'] + (lazy_reg - 1) * train['plain']['seconds']) / lazy_reg)
  for row in train.values():
    assert row['images_per_second'] == pytest.approx(32 / row['seconds']) and row['utilisation'] is None
    assert row['operations_per_second_per_device'] == pytest.approx(
        row['operations_per_image'] * row['images_per_second'] / 2)
  assert report['sample']['sample_4']['images_per_second'] == pytest.approx(4 / report['sample']['sample_4']['seconds'])
  assert 0 <= report['data']['data_wait'] <= 1
  assert report['memory']['r1']['step_mib'] > report['memory']['r1']['temporary_mib'] > 0
  assert list((tmp_path / 'trace').rglob('*.xplane.pb'))


@pytest.mark.parametrize('arguments, message', [
    (('--what', 'train,speed'), "--what contains 'speed'; use some of compile"),
    (('--sample_batches', '1,x'), "--sample_batches is '1,x'; use positive integers"),
    (('--out', 'b.txt'), "--out is 'b.txt'; use a name that ends in .json"),
    (('--out', 'nowhere/b.json'), "--out: the folder 'nowhere' does not exist"),
    (('--config.data.batch_size=20',), 'data.batch_size is 20; use a multiple of 8'),
])
def test_errors_are_one_sentence(tmp_path, arguments, message):
  (tmp_path / 'tiny.py').write_text(config_text(quick_config_dict()))
  result = run_command(benchmark.main, '--config', tmp_path / 'tiny.py', *arguments, devices=2)
  assert result.status == 2 and result.err.startswith(f'Error: {message}') and result.err.count('\n') == 1
