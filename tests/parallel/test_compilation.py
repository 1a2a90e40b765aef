"""The compiler options of programs."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from ddgan_jax import train_state, train_step
from ddgan_jax.parallel import compilation, sharding

OPTION = 'xla_cpu_experimental_ynn_fusion_type'
needs_option = pytest.mark.skipif(
    jaxlib.version.__version_info__ < (0, 10, 2) or OPTION in os.environ['XLA_FLAGS'] or jax.default_backend() != 'cpu',
    reason='jaxlib began to use YNNPACK in 0.10.2, on CPUs, and XLA_FLAGS may say otherwise')


def fused_by_ynnpack(compiled) -> list[str]:
  """The operation of each YNNPACK fusion: the opcode of its root."""
  hlo = compiled.as_text()
  names = re.findall(r' fusion\(.*calls=%([\w.\-]+).*__ynn_fusion', hlo)
  bodies = [hlo.partition(f'\n%{name} (')[2].partition('\n}')[0] for name in names]
  return [re.search(r'ROOT %[\w.\-]+ = \S+ ([\w\-]+)\(', body)[1] for body in bodies]


@pytest.fixture
def compile_step(tiny_config, quick_config):
  """Compiles a step with an MLP as G and convolutions as D."""
  def compiled():
    config = dataclasses.replace(tiny_config, generator=quick_config.generator)
    mesh = sharding.make_mesh(jax.devices()[:1])
    return train_step.make_step_fn(config, mesh, False).lower(
        train_state.abstract_state(config, None), *train_step.abstract_batch(config, mesh).values()).compile()

  return compiled


@needs_option
def test_a_training_step_leaves_only_convolutions_to_xla(compile_step, monkeypatch):
  fusions = fused_by_ynnpack(compile_step())
  assert 'dot' in fusions and 'convolution' not in fusions
  monkeypatch.setattr(compilation, 'compiler_options', lambda platform: {})
  default_fusions = fused_by_ynnpack(compile_step())
  assert 'convolution' in default_fusions
  assert sorted(fusions) == sorted(kind for kind in default_fusions if kind != 'convolution')


@needs_option
def test_options_by_platform():
  assert compilation.compiler_options('cpu').keys() == {OPTION}
  assert compilation.compiler_options('tpu') == {}


def test_jaxlib_knows_the_options_of_gpus(monkeypatch):
  """XLA has one set of option names for all platforms, so a CPU can check them."""
  monkeypatch.setenv('XLA_FLAGS', '')
  cached = 'xla_gpu_per_fusion_autotune_cache_dir'
  before = jax.config.jax_compilation_cache_dir
  try:
    for folder, expected in (('/cache', {cached}), ('gs://bucket/cache', set()), (None, set())):
      jax.config.update('jax_compilation_cache_dir', folder)
      assert compilation.compiler_options('gpu').keys() == {*compilation.XLA_OPTIONS['gpu'], *expected}
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_autotune_level=4 --xla_gpu_enable_triton_gemm')
  assert not {'xla_gpu_autotune_level', 'xla_gpu_enable_triton_gemm'} & compilation.compiler_options('gpu').keys()


@pytest.mark.parametrize('transformed', [
    jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f)), lambda f: lambda x: jax.vmap(jax.grad(f))(x) * x,
    lambda f: lambda x: jax.lax.map(f, x), lambda f: lambda x: jax.jvp(f, (x,), (x,))[1], lambda f: lambda x: f(x)])
def test_programs_work_inside_transformations(transformed):
  """JAX refuses this for programs with compiler options."""
  double = compilation.jit(lambda x, by: by * x, static_argnames='by')
  x = np.arange(3.0, dtype=np.float32)
  np.testing.assert_array_equal(transformed(lambda x: double(x, by=2))(x), 2 * x)
  assert double(x, by=3)[1] == 3  # then on its own again
  assert double.__name__ == '<lambda>'


@needs_option
def test_a_top_level_program_has_the_options(monkeypatch):
  expected, used = compilation.compiler_options('cpu'), []
  plain_jit = jax.jit
  monkeypatch.setattr(jax, 'jit', lambda f, **kwargs: used.append(kwargs) or plain_jit(f, **kwargs))
  program = compilation.jit(lambda x: x + 1, donate_argnums=0)
  assert used == [{'donate_argnums': 0}]  # the backend is not queried yet
  x = jnp.ones(3)
  assert program(x)[0] == 2 and x.is_deleted()
  assert used[1:] == [{'donate_argnums': 0, 'compiler_options': expected}]
  assert program.lower(jnp.ones(3)).compile()(jnp.ones(3))[0] == 2 and len(used) == 2


@pytest.mark.parametrize('options', [{'xla_cpu_no_such_option': '1'}, {OPTION: 'NO_SUCH_VALUE'}])
def test_options_unknown_to_jaxlib_are_omitted(monkeypatch, options):
  monkeypatch.setitem(compilation.XLA_OPTIONS, 'cpu', options)
  assert compilation.compiler_options('cpu') == {}
  assert compilation.jit(lambda x: x + 1)(1) == 2


@needs_option
def test_options_set_by_the_user_are_kept(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', f'--{OPTION}=')
  assert compilation.compiler_options('cpu') == {}
