"""The convolution with a weight gradient of its own, against XLA's to the second order, and where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.collectives import collectives
from ddgan_jax import losses, models, operations, sharding
from ddgan_jax.config import DiscriminatorConfig
from ddgan_jax.models import convolution
from tests.conftest import relative_error


def xla(x, kernel):
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def normal(*shape):
  return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def loss(convolve, x, kernel):
  return jnp.sin(convolve(x, kernel)).sum()  # its gradient depends on what the convolution gives


def penalty(convolve, x, kernel):
  """Of the input's gradient, as R1 is, and of the kernel's."""
  by_x, by_kernel = jax.grad(loss, argnums=(1, 2))(convolve, x, kernel)
  return jnp.square(by_x).sum() + 1e-3 * jnp.square(by_kernel).sum()


SHAPES = [(1, 64, 32, 48, 4), (9, 17, 19, 49, 5), (8, 16, 16, 48, 24), (2, 31, 37, 48, 3)]  # B, H, W, C, F


@pytest.mark.parametrize('function', [loss, penalty])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_against_xla(function, shape):
  *image, channels, features = shape
  x, kernel = normal(*image, channels), normal(3, 3, channels, features) / 12
  found, expected = (
      jax.jit(jax.value_and_grad(lambda *args, f=f: function(f, *args), argnums=(0, 1)))(x, kernel)
      for f in (convolution.same_size, xla))
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert ours.dtype == theirs.dtype and relative_error(ours, theirs) < 1e-5


def test_bfloat16_is_summed_in_float32():
  x, g = (normal(*shape).astype(jnp.bfloat16) for shape in [(8, 16, 16, 48), (8, 16, 16, 8)])
  expected = convolution._by_convolution(x.astype(np.float32), g.astype(np.float32))
  for gradient in (convolution._by_convolution, convolution._by_products):
    found = gradient(x, g)
    assert found.dtype == jnp.bfloat16 and relative_error(found.astype(np.float32), expected) < 2**-8
  by_x, by_kernel = jax.grad(
      lambda *args: convolution.same_size(*args).sum().astype(jnp.float32), argnums=(0, 1))(x, x[0, :3, :3, :, None])
  assert by_x.dtype == by_kernel.dtype == jnp.bfloat16


def test_each_platform_is_compiled_with_its_own_form():
  """On CPUs no convolution; elsewhere the operations that JAX's own gradient has."""
  x, g, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in [
      (8, 16, 16, 48), (8, 16, 16, 8), (3, 3, 48, 8)])

  def convolutions(function, platform, *args):
    text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return sorted(line.split(' : ')[0].split(') ')[-1] for line in text.splitlines() if 'stablehlo.convolution' in line)

  assert not convolutions(convolution.weight_gradient, 'cpu', x, g)
  for platform in ('cuda', 'tpu'):
    ours, plain = (
        convolutions(jax.grad(lambda *args, f=f: loss(f, *args), argnums=(0, 1)), platform, x, kernel)
        for f in (convolution.same_size, xla))
    assert ours == plain and len(ours) == 3


@pytest.mark.parametrize('shape, changed', [
    ((8, 16, 16, 48), True), ((2, 32, 32, 128), True), ((4, 16, 16, 48), False), ((8, 16, 16, 16), False),
    ((128, 8, 8, 64), False)], ids=str)
def test_used_where_xla_is_slow(shape, changed):
  jaxpr = jax.make_jaxpr(convolution.same_size)(np.zeros(shape, np.float32), np.zeros((3, 3, shape[-1], 4), np.float32))
  assert ('custom_vjp' in str(jaxpr)) == changed


@pytest.mark.parametrize('argnum', [0, 1])
def test_the_same_number_of_operations(argnum):
  """Without the gradient of the argument that is a constant, which ours is asked for but nobody needs."""
  x, kernel = normal(8, 16, 16, 48), normal(3, 3, 48, 8)
  ours, theirs = (
      operations.count(jax.grad(lambda *args, f=f: loss(f, *args), argnum), x, kernel)
      for f in (convolution.same_size, xla))
  assert ours == theirs


def test_in_a_loop_with_remat():
  x, kernel = normal(2, 8, 16, 16, 48), normal(3, 3, 48, 48) / 20

  def summed(convolve, kernel):
    step = jax.checkpoint(lambda total, x: (total + loss(lambda *args: convolve(*args), x, kernel), None))
    return jax.lax.scan(step, 0.0, x)[0]

  found, expected = (
      jax.jit(jax.grad(lambda kernel, f=f: summed(f, kernel)))(kernel) for f in (convolution.same_size, xla))
  assert relative_error(found, expected) < 1e-5


def test_on_eight_devices_nothing_more_is_communicated():
  x, kernel = normal(64, 16, 16, 48), normal(3, 3, 48, 8) / 20
  mesh = sharding.make_mesh()
  gradients = []
  for convolve in (convolution.same_size, xla):
    def gradient(params, others, rows, convolve=convolve):
      return jax.grad(lambda kernel: loss(convolve, rows, kernel) / len(rows))(params), others

    step = jax.jit(sharding.mean_gradient(gradient, mesh)).lower(
        kernel, (), jax.device_put(x, sharding.by_rows(mesh))).compile()
    assert [(c.kind, c.bytes, c.in_loop) for c in collectives(step.as_text())] == [
        ('all-reduce', kernel.nbytes, False)]
    gradients.append(step(kernel, (), jax.device_put(x, sharding.by_rows(mesh)))[0])
  assert relative_error(*gradients) < 1e-5


def test_r1_of_a_discriminator(monkeypatch):
  config = DiscriminatorConfig(kind='tiny', ngf=24, t_emb_dim=8, image_size=32, num_channels=3)
  discriminator = models.Discriminator(config)
  x_t, fake, x_tp1 = (normal(4, 32, 32, 3) * scale for scale in (1, 0.5, 2))
  t = np.arange(4)
  shapes = jax.eval_shape(discriminator.init, jax.random.key(0), x_t, t, x_tp1)['params']
  params = jax.tree.map(lambda leaf: normal(*leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), shapes)

  def gradient():
    return jax.jit(jax.grad(
        lambda params: losses.discriminator_loss(params, discriminator, x_t, fake, t, x_tp1, 1.0)[0]))(params)

  found = gradient()
  monkeypatch.setattr(convolution, 'convolve', convolution._convolve)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(gradient()), strict=True):
    assert relative_error(ours, theirs) < 1e-4
