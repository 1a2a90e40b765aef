"""With which options programs are compiled."""

import re

import jax
import numpy as np
import pytest

from ddgan_jax import compilation, sharding, train_state, train_step

YNN_CONVOLUTIONS = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION'


@pytest.fixture
def known():
  """A jaxlib that knows the options, and no $XLA_FLAGS about them."""
  if not compilation.options('cpu'):
    pytest.skip('this jaxlib has no YNNPACK')


def convolutions_by_ynnpack(hlo: str) -> int:
  fused = re.findall(r'fusion\(.*calls=%([\w.]+).*__ynn_fusion', hlo)
  return sum(' convolution(' in hlo.partition(f'\n%{name} (')[2].partition('\n}')[0] for name in fused)


def convolve(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def test_convolutions_are_left_to_xla(known):
  args = np.ones((4, 16, 16, 32), np.float32), np.ones((3, 3, 32, 32), np.float32)
  by_option = {
      name: convolutions_by_ynnpack(jitted(convolve).lower(*args).compile().as_text()) for name, jitted in {
          'ours': compilation.jit,
          'YNNPACK': lambda function: jax.jit(function, compiler_options=dict.fromkeys(
              compilation.options('cpu'), YNN_CONVOLUTIONS))}.items()}
  assert by_option == {'ours': 0, 'YNNPACK': 1}


def test_the_training_step_has_the_options(known, tiny_config):
  mesh = sharding.make_mesh(jax.devices()[:1])
  step = train_step.make_step_fn(tiny_config, mesh, True).lower(
      train_state.abstract(tiny_config, None), *train_step.inputs(tiny_config, mesh).values()).compile()
  text = step.as_text()
  assert ' convolution(' in text
  assert '__ynn_fusion' in text  # products still are
  assert not convolutions_by_ynnpack(text)


def test_only_for_cpus(known):
  assert compilation.options('cuda') == compilation.options('tpu') == {}


def test_a_jaxlib_without_the_options(monkeypatch):
  monkeypatch.setattr(compilation, '_CPU_OPTIONS', {'xla_cpu_no_such_option': '1'})
  assert compilation.options('cpu') == {}
  assert compilation.jit(lambda x: x + 1)(1) == 2


def test_what_the_user_sets_stays(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=')
  assert compilation.options('cpu') == {}
