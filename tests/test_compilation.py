"""With which options programs are compiled."""

import os
import re

import jax
import jaxlib
import pytest

from ddgan_jax import train_state, train_step
from ddgan_jax.parallel import compilation, sharding

OPTION = 'xla_cpu_experimental_ynn_fusion_type'
needs_option = pytest.mark.skipif(
    jaxlib.version.__version_info__ < (0, 10, 2) or OPTION in os.environ['XLA_FLAGS'] or jax.default_backend() != 'cpu',
    reason='jaxlib began to use YNNPACK in 0.10.2, on CPUs, and XLA_FLAGS may say otherwise')


def fused_by_ynnpack(compiled) -> list[str]:
  """What each of YNNPACK's fusions does: the opcode of its root."""
  hlo = compiled.as_text()
  names = re.findall(r' fusion\(.*calls=%([\w.\-]+).*__ynn_fusion', hlo)
  bodies = [hlo.partition(f'\n%{name} (')[2].partition('\n}')[0] for name in names]
  return [re.search(r'ROOT %[\w.\-]+ = \S+ ([\w\-]+)\(', body)[1] for body in bodies]


@pytest.fixture
def plain_step(tiny_config):
  def compiled():
    mesh = sharding.make_mesh(jax.devices()[:1])
    return train_step.make_step_fn(tiny_config, mesh, False).lower(
        train_state.abstract(tiny_config, None), *train_step.inputs(tiny_config, mesh).values()).compile()

  return compiled


@needs_option
def test_a_training_step_leaves_convolutions_to_xla_and_nothing_else(plain_step, monkeypatch):
  ours = fused_by_ynnpack(plain_step())
  assert 'dot' in ours and 'convolution' not in ours
  monkeypatch.setattr(compilation, 'options', lambda platform: {})
  by_default = fused_by_ynnpack(plain_step())
  assert 'convolution' in by_default
  assert sorted(ours) == sorted(kind for kind in by_default if kind != 'convolution')


@needs_option
def test_only_for_cpus():
  assert compilation.options('cpu').keys() == {OPTION}
  assert compilation.options('cuda') == compilation.options('tpu') == {}
  # JAX nests programs only if they have no options.
  assert jax.jit(compilation.jit(lambda x: -x, 'tpu'))(1) == -1
  with pytest.raises(ValueError, match='compiler_options'):
    jax.jit(compilation.jit(lambda x: -x))(1)


@pytest.mark.parametrize('name, value', [('_CPU_OPTION', 'xla_cpu_no_such_option'), ('_CPU_VALUE', 'NO_SUCH_VALUE')])
def test_a_jaxlib_that_does_not_know_the_options(monkeypatch, name, value):
  monkeypatch.setattr(compilation, name, value)
  assert compilation.options('cpu') == {}
  assert compilation.jit(lambda x: x + 1)(1) == 2


@needs_option
def test_what_the_user_sets_stays(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', f'--{OPTION}=')
  assert compilation.options('cpu') == {}
