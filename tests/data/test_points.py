"""The 25 Gaussians: the data, batches, mode counts and scatter plots."""

import numpy as np
import pytest

from ddgan_jax.config import DataConfig
from ddgan_jax.data import pipeline, points, sources
from ddgan_jax.metrics.points import count_point_modes
from ddgan_jax.reporting import grids, plotting

DATA = DataConfig(name='gaussians25', image_size=1, num_channels=2, batch_size=64)


@pytest.fixture(scope='module')
def source():
  return sources.load_source(DATA)


def test_the_set_is_25_equal_gaussians(source):
  drawn, labels = source.gather(np.arange(len(source)))
  assert drawn.shape == (100_000, 1, 1, 2) and drawn.dtype == np.float32 and 4 < np.abs(drawn).max() < 4.5
  grid = drawn.reshape(-1, 2)
  expected = {(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)}
  found = set()
  for k in range(25):
    mode = grid[labels == k]
    assert abs(len(mode) - 4_000) < 5 * np.sqrt(4_000)
    np.testing.assert_allclose(mode.std(axis=0), 0.05, rtol=0.06)
    found.add(tuple(np.round(mode.mean(axis=0), 2) + 0.0))
  assert found == expected


def test_a_batch_is_not_quantised(source):
  batch = pipeline.global_batch(source, DATA, seed=0, step=0)
  drawn, labels = source.gather(pipeline.permutation(0, 0, 0, len(source))[:64])
  np.testing.assert_array_equal(batch['image'], drawn)
  np.testing.assert_array_equal(batch['label'], labels)
  np.testing.assert_array_equal(pipeline.preview(source, DATA, seed=0, count=8), drawn[:8])


def test_the_data_have_a_fixed_checksum(source):
  other = points.draw(seed=1)[0]
  assert sources.load_source(DATA).checksum == source.checksum != ''
  assert np.abs(other - source.images).max() > 0.1


def test_modes_of_the_data_in_closed_form(source):
  """3 standard deviations of a 2-D Gaussian hold 1 - exp(-4.5) of it; n draws of 25 modes have a KL of 24 / 2n."""
  modes = count_point_modes(source.images)
  assert modes.found == 25
  assert modes.in_mode == pytest.approx(1 - np.exp(-4.5), abs=0.002)
  assert modes.kl == pytest.approx(24 / 2e5, rel=0.8)


@pytest.mark.parametrize('offset, found', [(2.9, 1), (3.1, 0)])
def test_a_mode_ends_at_three_standard_deviations(offset, found):
  point = points.CENTRES[7] + [0, offset * 0.05]
  modes = count_point_modes(point[None])
  assert modes == (found, float(found), pytest.approx(np.log(25)))


def test_modes_of_points_near_ten_of_them():
  chosen = np.repeat(points.CENTRES[:10], 3, axis=0)
  assert count_point_modes(np.concatenate([chosen, chosen + 0.25])) == (10, 0.5, pytest.approx(np.log(2.5)))


def ink_centre(picture):
  """The centre (row, column) of the blue pixels, as fractions of the picture."""
  rows, columns = np.nonzero(picture[..., 2].astype(int) - picture[..., 0] > 60)
  return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


def test_scatter_plots_points_at_their_coordinates():
  for x, y in ((4, 4), (-4, 4), (4, -2)):
    row, column = ink_centre(plotting.draw(np.full((20, 2), [x, y]), 'title'))
    # The axes leave a margin for their labels.
    assert (row < 0.45) == (y > 0) and (column > 0.55) == (x > 0), (x, y, row, column)
  assert grids.make_picture(np.zeros((3, 1, 1, 2), np.float32), '').shape == (600, 600, 3)
