"""Samples as pictures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pidistill import PidistillError
from pidistill.images import SIDE, grid, save_png, scatter, to_uint8


@given(st.integers(0, 255))
def test_eight_bit_levels_survive(level):
    assert to_uint8(torch.tensor([level / 127.5 - 1])).item() == level


@given(st.floats(-10, 10, width=32))
def test_levels_are_the_nearest_and_clipped(value):
    expected = min(max(value, -1.0), 1.0) * 127.5 + 127.5
    assert abs(to_uint8(torch.tensor([value])).item() - expected) <= 0.5 + 1e-4


@given(st.integers(1, 12), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 3))
def test_every_sample_lies_in_its_place_with_a_white_border(num, channels, columns, zoom):
    levels = torch.arange(num) * 10
    x = (levels / 127.5 - 1).reshape(-1, 1, 1, 1).expand(-1, channels, 2, 4)
    picture = grid(x, columns=columns, zoom=zoom)
    rows, height, width = -(-num // columns), 2 * zoom + 2, 4 * zoom + 2
    assert picture.shape == (rows * height, columns * width, 3)
    assert picture.dtype == np.uint8
    for i in range(rows * columns):
        top, left = i // columns * height, i % columns * width
        tile = picture[top : top + height, left : left + width]
        inner = tile[1:-1, 1:-1]
        assert (inner == (levels[i].item() if i < num else 255)).all()
        assert tile.sum() - inner.sum(dtype=int) == 255 * 3 * (height * width - inner[..., 0].size)


def test_a_grid_is_about_square_and_small_images_are_enlarged():
    assert grid(torch.zeros(9, 1, 8, 8)).shape == (3 * 50, 3 * 50, 3)


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 8, 8), (3, 8, 8)])
def test_samples_that_are_not_images_are_refused(shape):
    with pytest.raises(PidistillError, match="are not images with 1 or 3 channels"):
        grid(torch.zeros(shape))


def test_points_lie_where_a_scatter_plot_says():
    """A dot is 3 pixels wide; what is not finite, or out of reach, is not shown."""
    x = torch.tensor([[1.0, 0.5], [-0.25, -1.5], [math.nan, 0], [math.inf, 1], [0.1, 9.0]])
    without, dots = scatter(x[2:4], reach=2.0), scatter(x, reach=2.0)
    rows, columns = np.nonzero((without != dots).any(2))
    centres = np.stack([columns, rows], 1).reshape(2, 9, 2).mean(1)
    assert np.allclose((centres / SIDE * 2 - 1) * [2, -2], [[1, 0.5], [-0.25, -1.5]], atol=0.02)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.9, 1.0, 3e5])
def test_a_scatter_plot_shows_nearly_all_points(scale):
    plain = scatter(torch.zeros(0, 2))
    assert (scatter(torch.rand(50, 2) * scale) != plain).any(2).sum() > 9 * 40 * (scale > 0)


def test_a_png_holds_the_picture(tmp_path):
    picture = grid(torch.rand(4, 3, 8, 8) * 2 - 1)
    save_png(tmp_path / "a.png", picture)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == picture).all()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
