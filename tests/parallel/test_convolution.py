"""Convolutions on CPUs: the layout that is fast in loops too, with the same results."""

import concurrent.futures
import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddgan_jax import config as config_lib
from ddgan_jax import train_state, train_step
from ddgan_jax.parallel import compilation, convolution, sharding
from tests.support import tiny_config_dict

NHWC = ('NHWC', 'HWIO', 'NHWC')


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layouts(function, *args):
  """The layouts of all convolutions that the compiled function holds."""
  return re.findall(r'dim_labels=([^\s,]+)', compilation.jit(function).lower(*args).compile().as_text())


def squares(kernel, x):
  y = lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=NHWC)
  return jnp.sum(jnp.sin(lax.conv_general_dilated(y, kernel, (1, 1), 'SAME', dimension_numbers=NHWC)))


def penalty(kernel, x):
  """A gradient, so that its own gradient is a second derivative, as in R1."""
  return jnp.sum(jax.grad(squares, 1)(kernel, x) ** 2)


def in_scan(kernel, x):
  return lax.scan(lambda total, x: (total + jax.grad(penalty)(kernel, x), None), jnp.zeros_like(kernel), x[None])[0]


def in_cond(kernel, x):
  return lax.cond(x[0, 0, 0, 0] > -100, jax.grad(penalty), lambda kernel, x: kernel, kernel, x)


@pytest.mark.parametrize('function', [in_scan, in_cond])
def test_gradients_in_loops_have_the_fast_layout(function):
  kernel, x = normal(0, 3, 3, 4, 4), normal(1, 2, 8, 8, 4)
  found = layouts(function, kernel, x)
  assert len(found) >= 6 and set(found) == {'b01f_01io->b01f'}
  expected = jax.jit(jax.grad(penalty))(kernel, x)
  np.testing.assert_allclose(compilation.jit(function)(kernel, x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_step_have_the_fast_layout():
  """Microbatches are a loop inside the step's shard_map; R1 in a program of several steps is a conditional."""
  fields = tiny_config_dict(image_size=32)  # so that no feature map is smaller than its kernel
  fields['train'].update(steps_per_call=2, log_every=2)
  fields['generator'].update(kind='mlp')  # only D has convolutions
  config = config_lib.from_config_dict({**fields, 'parallel': {'accumulation': 2}})
  mesh = sharding.make_mesh(jax.devices()[:2])
  program = train_step.make_steps_fn(config, mesh).lower(
      train_state.abstract_state(config, sharding.state_sharding(mesh)),
      *train_step.abstract_batch(config, mesh, stacked=True).values())
  assert set(re.findall(r'dim_labels=([^\s,]+)', program.compile().as_text())) == {'b01f_01io->b01f'}


def test_without_the_module_loops_have_another_layout():
  """XLA's own choice of layout stops at loops. If this fails, the module is no longer needed."""
  kernel, x = normal(0, 3, 3, 4, 4), normal(1, 2, 8, 8, 4)
  assert 'dim_labels=f01b_i01o->01bf' in jax.jit(in_scan).lower(kernel, x).compile().as_text()
  assert set(layouts(in_scan, kernel, x)) == {'b01f_01io->b01f'}


def test_other_programs_use_the_lowering_rule_of_jax():
  """Also programs that another thread lowers meanwhile, and later ones of this thread, even after an exception."""
  kernel, x = normal(0, 3, 3, 4, 4), normal(1, 2, 8, 8, 4)
  lower = lambda: jax.jit(jax.grad(penalty)).lower(kernel, x).as_text()

  def raises():
    with convolution.cpu_convolution_layout():
      raise ValueError

  with pytest.raises(ValueError):
    raises()
  plain = lower()
  ours = compilation.jit(jax.grad(penalty)).lower(kernel, x).as_text()
  with convolution.cpu_convolution_layout(), concurrent.futures.ThreadPoolExecutor(1) as pool:
    elsewhere = pool.submit(lower).result()
  assert ours != plain == elsewhere == lower()


@pytest.mark.parametrize('spec', [
    ('NCHW', 'OIHW', 'NCHW'), ('CHWN', 'IHWO', 'HWNC'), ('HNWC', 'HOWI', 'CWHN')], ids='-'.join)
@pytest.mark.parametrize('options', [
    {}, {'window_strides': (2, 3)}, {'rhs_dilation': (2, 1)}, {'lhs_dilation': (1, 2)}, {'feature_group_count': 2},
    {'padding': ((1, 2), (0, 3))}], ids=str)
def test_results_do_not_depend_on_the_layout(spec, options):
  options = {'window_strides': (1, 1), 'padding': ((0, 0), (0, 0)), **options}
  groups = options.get('feature_group_count', 1)
  x, kernel = normal(2, 3, 9, 11, 4), normal(3, 3, 2, 4 // groups, 6)
  expected = lax.conv_general_dilated(x, kernel, dimension_numbers=NHWC, **options)
  convert = lambda array, before, after: jnp.transpose(array, [before.index(letter) for letter in after])
  y = compilation.jit(functools.partial(lax.conv_general_dilated, dimension_numbers=spec, **options))(
      convert(x, 'NHWC', spec[0]), convert(kernel, 'HWIO', spec[1]))
  np.testing.assert_allclose(convert(y, spec[2], 'NHWC'), expected, rtol=1e-5, atol=1e-5)


def test_one_and_three_spatial_dimensions_and_vmap():
  x, kernel = normal(4, 2, 5, 3, 10), normal(5, 2, 6, 3, 3)  # [vmapped, N, C, W], [vmapped, O, I, W]
  convolve = lambda x, kernel: lax.conv_general_dilated(
      x, kernel, (1,), 'VALID', dimension_numbers=('NCW', 'OIW', 'NCW'))
  looped = jnp.stack([convolve(a, b) for a, b in zip(x, kernel)])
  expected = sum(jnp.einsum('vnci,voc->vnoi', x[..., k:k + 8], kernel[..., k]) for k in range(3))
  np.testing.assert_allclose(looped, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(compilation.jit(jax.vmap(convolve))(x, kernel), expected, rtol=1e-4, atol=1e-5)
  volume = normal(6, 2, 4, 4, 4, 3)
  y = compilation.jit(lambda x, kernel: lax.conv_general_dilated(
      x, kernel, (1, 1, 1), 'VALID', dimension_numbers=('NCDHW', 'OIDHW', 'NCDHW')))(
          jnp.moveaxis(volume, -1, 1), normal(7, 5, 3, 1, 1, 1))
  np.testing.assert_allclose(
      y, jnp.einsum('ndhwc,oc->nodhw', volume, normal(7, 5, 3, 1, 1, 1)[..., 0, 0, 0]), rtol=1e-4, atol=1e-5)


def test_explicitly_sharded_arrays_are_left_alone():
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
  place = lambda array, *spec: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
  x, kernel = normal(8, 4, 8, 8, 4), normal(9, 3, 3, 4, 4)

  def loss(kernel, x):
    y = lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=NHWC)
    return jnp.sum(jnp.sin(y))

  for argument in (0, 1):
    gradient = jax.grad(loss, argument)
    with jax.set_mesh(mesh):
      found = compilation.jit(gradient)(place(kernel), place(x, 'data'))
    np.testing.assert_allclose(found, jax.jit(gradient)(kernel, x), rtol=1e-4, atol=1e-4)


def test_reloading_the_module():
  """As in notebooks: the module must not mistake its own rule for JAX's."""
  convolution._install()
  jax_rule = convolution._jax_rule()
  importlib.reload(convolution)
  convolution._install()
  assert convolution._jax_rule() is jax_rule
  assert set(layouts(in_scan, normal(0, 3, 3, 4, 4), normal(1, 2, 8, 8, 4))) == {'b01f_01io->b01f'}
