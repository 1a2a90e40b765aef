"""FIR resampling against scipy, and its two forms against each other."""

import jax
import numpy as np
import pytest
import scipy.signal

from ddgan_jax.models import resample

KERNELS = [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 2, 3, 5), (1, 5, 10, 10, 5, 1)]


def upfirdn(x, kernel, up, down, left, right, gain):
  """The reference along H and W, by scipy, whose output is padded with len(kernel) - 1 zeros on the left."""
  taps = gain * np.asarray(kernel, np.float64) / np.sum(kernel)
  for axis in (1, 2):
    inserted = np.zeros([n * up if k == axis else n for k, n in enumerate(x.shape)])
    inserted[tuple(slice(None, None, up) if k == axis else slice(None) for k in range(4))] = x
    padded = np.pad(inserted, [(left, right) if k == axis else (0, 0) for k in range(4)])
    full = scipy.signal.upfirdn(taps, padded, axis=axis)
    size = padded.shape[axis] - len(kernel) + 1
    x = full.take(range(len(kernel) - 1, len(kernel) - 1 + size, down), axis=axis)
  return x


@pytest.mark.parametrize('kernel', KERNELS)
def test_against_scipy(kernel):
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
  total = len(kernel) - 2
  down = upfirdn(x, kernel, 1, 2, (total + 1) // 2, total // 2, 1)
  up = upfirdn(x, kernel, 2, 1, (total + 1) // 2 + 1, total // 2, 2)
  before_conv = upfirdn(x, kernel, 1, 1, (len(kernel) + 1) // 2, len(kernel) // 2, 1)
  assert down.shape == (2, 3, 4, 3) and up.shape == (2, 12, 16, 3) and before_conv.shape == (2, 7, 9, 3)
  np.testing.assert_allclose(resample.fir_down(x, kernel), down, atol=1e-6)
  np.testing.assert_allclose(resample.fir_up(x, kernel), up, atol=1e-6)
  np.testing.assert_allclose(resample.fir_before_strided_conv(x, kernel), before_conv, atol=1e-6)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('function', [resample.fir_down, resample.fir_up, resample.fir_before_strided_conv])
def test_the_tpu_form_gives_the_same_result(function, kernel, monkeypatch):
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
  shifts = function(x, kernel)
  monkeypatch.setattr(resample, '_filter', resample._filter_by_conv)
  np.testing.assert_allclose(function(x, kernel), shifts, atol=1e-6)


def test_each_platform_is_compiled_with_its_own_form():
  """One depthwise convolution on TPUs, none elsewhere."""
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
  traced = jax.jit(lambda x: resample.fir_down(x, (1, 3, 3, 1))).trace(x)
  assert 'stablehlo.convolution' not in traced.lower(lowering_platforms=('cpu',)).as_text()
  assert 'stablehlo.convolution' in traced.lower(lowering_platforms=('tpu',)).as_text()


def test_the_formulas_in_the_docstring():
  x = np.arange(1, 9, dtype=np.float32)
  image = np.broadcast_to(x[None, :, None, None], (1, 8, 8, 1))
  zero_padded = np.pad(x, 2)
  down = np.asarray(resample.fir_down(image, (1, 3, 3, 1)))[0, :, 1, 0]
  up = np.asarray(resample.fir_up(image, (1, 3, 3, 1)))[0, :, 4, 0]
  for i in range(4):
    a, b, c, d = zero_padded[2 * i + 1:2 * i + 5]
    assert down[i] == pytest.approx((a + 3 * b + 3 * c + d) / 8)
  for i in range(8):
    before, here, after = zero_padded[i + 1:i + 4]
    assert up[2 * i] == pytest.approx((before + 3 * here) / 4)
    assert up[2 * i + 1] == pytest.approx((3 * here + after) / 4)


def test_resampling_without_fir():
  x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(resample.mean_down(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
  np.testing.assert_array_equal(resample.nearest_up(x), x.repeat(2, 1).repeat(2, 2))
