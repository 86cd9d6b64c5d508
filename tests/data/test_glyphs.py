"""Glyphs: the images are what their factors say, and the same bytes everywhere."""

import colorsys
import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path

from pidistill.data import load_data
from pidistill.data.glyphs import CLASSES, SIZE, draw, glyphs_factors, glyphs_images, polygon

NAMES = list(CLASSES)
PIXEL = 2 / SIZE
AREAS = {  # of a shape of radius 1
    "disc": math.pi * 0.9**2,
    "ring": math.pi * (1 - 0.55**2),
    "square": 1.6**2,
    "triangle": 3 * math.sqrt(3) / 4 * 1.15**2,
    "cross": 2 * 2 * 0.64 - 0.64**2,
    "star": 10 * 0.5 * 1.15 * 0.5 * math.sin(math.pi / 5),
    "arrow": 0.5 * 1.7 * 0.95 + 0.64 * 1.1,
}
CENTRED = ("disc", "ring", "square", "triangle", "cross", "star", "bolt")

coordinates = st.floats(-1.5, 1.5, allow_subnormal=False)


@pytest.fixture(scope="module")
def drawn():
    return glyphs_images(400, seed=3)


def covers(images, factors):
    """How much of every pixel the shape covers, (n, 32, 32), from the pixels alone."""
    line = (torch.arange(SIZE) + 0.5) * PIXEL - 1
    found = []
    for row, image in enumerate(images.double() / 2 + 0.5):
        shape = torch.tensor(colorsys.hsv_to_rgb(factors.hue[row].item(), 0.5, 1))
        ground = torch.tensor(colorsys.hsv_to_rgb(factors.ground_hue[row].item(), 0.6, 1))
        light = factors.light[row]
        value = 0.4 + 0.14 * (line * light.cos() + line[:, None] * light.sin())
        ground = ground[:, None, None] * value
        difference = shape[:, None, None] - ground
        found.append(((image - ground) * difference).sum(0) / difference.square().sum(0))
    return torch.stack(found)


def test_the_data_set_is_the_samples_of_seed_0():
    data = load_data("glyphs")
    images, factors = glyphs_images(50, seed=0)
    assert data.images.shape == (20_000, 3, SIZE, SIZE)
    assert data.images.dtype == torch.float32
    assert torch.equal(data.images[:50], images)
    assert torch.equal(data.labels[:50], factors.label)
    assert data.labels.bincount().tolist() == [2000] * 10
    assert (data.num_classes, data.name) == (10, "glyphs")


def test_every_machine_draws_the_same_bytes(drawn):
    levels = ((drawn[0] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(levels.float() / 127.5 - 1, drawn[0])
    assert hashlib.sha256(levels.numpy().tobytes()).hexdigest()[:16] == "e3e2c1cf852ec7c4"


def test_a_sample_depends_on_seed_and_index_only(drawn):
    images, factors = drawn
    part, part_factors = glyphs_images(7, seed=3, first=195)
    assert torch.equal(part, images[195:202])
    for values, whole in zip(part_factors, factors, strict=True):
        assert torch.equal(values, whole[195:202])
    assert not torch.equal(glyphs_images(7, seed=4, first=195)[0], part)


def test_factors_fill_their_ranges():
    factors = glyphs_factors(5000, seed=1)
    place, size, turned, hue, light = (-0.2, 0.2), (0.5, 0.7), (-0.4, 0.4), (0, 1), (0, 2 * math.pi)
    ranges = [place, place, size, turned, hue, hue, light]
    for values, (low, high) in zip(factors[1:], ranges, strict=True):
        values = (values - low) / (high - low)
        assert 0 <= values.min() < 0.002
        assert 0.998 < values.max() <= 1
        assert abs(values.mean() - 0.5) < 0.02
    turn = (factors.ground_hue - factors.hue) % 1
    assert (turn.min() - 0.3).abs() < 1e-3
    assert (turn.max() - 0.7).abs() < 1e-3
    columns = torch.stack([values.double() for values in factors if values is not factors[6]])
    correlations = columns.corrcoef() - torch.eye(len(columns))
    assert correlations.abs().max() < 0.06


def drawn_of(drawn, name):
    """How much of every pixel the shapes of one class cover, and their factors."""
    images, factors = drawn
    rows = factors.label == NAMES.index(name)
    factors = type(factors)(*(values[rows] for values in factors))
    return covers(images[rows], factors), factors


@pytest.mark.parametrize("name", AREAS)
def test_a_shape_has_its_area(name, drawn):
    cover, factors = drawn_of(drawn, name)
    areas = cover.sum((1, 2)) * PIXEL**2 / factors.radius**2
    torch.testing.assert_close(areas.mean().item(), AREAS[name], rtol=0.01, atol=0)
    assert (areas / AREAS[name] - 1).abs().max() < 0.03


@pytest.mark.parametrize("name", CENTRED)
def test_a_shape_is_at_its_place(name, drawn):
    cover, factors = drawn_of(drawn, name)
    line = ((torch.arange(SIZE) + 0.5) * PIXEL - 1).double()
    mass = cover.sum((1, 2))
    assert ((cover.sum(1) @ line / mass) - factors.x).abs().max() < 0.01
    assert ((cover.sum(2) @ line / mass) - factors.y).abs().max() < 0.01


def test_every_shape_is_whole_and_on_a_clean_ground(drawn):
    cover = covers(*drawn)
    rounding = 0.02  # of 8 bits, where the colours are near each other
    assert cover.min() > -rounding
    assert cover.max() < 1 + rounding
    border = torch.cat([cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]], dim=1)
    assert border.abs().max() < 0.5
    corners = cover[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.abs().max() < rounding


def test_a_shape_turns_clockwise():
    factors = glyphs_factors(1, seed=0)._replace(
        x=torch.zeros(1).double(), y=torch.zeros(1).double(), radius=torch.full((1,), 0.7).double()
    )
    images = [
        draw(factors._replace(angle=torch.tensor([angle]).double()), CLASSES["arrow"])
        for angle in (0, math.pi / 2)
    ]
    covered = [covers(image, factors)[0] for image in images]
    torch.testing.assert_close(covered[0].rot90(-1), covered[1], rtol=0, atol=0.03)
    assert covered[0][6:12].sum() > covered[0][20:26].sum()  # it points up
    assert covered[1][:, 20:26].sum() > covered[1][:, 6:12].sum()  # then to the right


@pytest.mark.parametrize("name", NAMES)
@given(x=coordinates, y=coordinates, dx=st.floats(-0.3, 0.3), dy=st.floats(-0.3, 0.3))
def test_distances_grow_no_faster_than_the_way(name, x, y, dx, dy):
    xs = torch.tensor([x, x + dx], dtype=torch.float64)
    ys = torch.tensor([y, y + dy], dtype=torch.float64)
    here, there = CLASSES[name](xs, ys).tolist()
    assert abs(here - there) <= math.hypot(xs.diff().item(), ys.diff().item()) + 1e-12


@given(
    corners=st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=3, unique=True),
    x=coordinates,
    y=coordinates,
)
def test_a_polygon_is_what_matplotlib_fills(corners, x, y):
    distance = polygon(*corners)(torch.tensor([x]).double(), torch.tensor([y]).double()).item()
    if abs(distance) > 1e-6:
        assert (distance < 0) == Path(np.array(corners)).contains_point((x, y))


def test_the_distance_to_a_square_is_euclidean():
    square = polygon((-1, -1), (1, -1), (1, 1), (-1, 1))
    x, y = torch.tensor([[0.0, 0.5, 2.0, 4.0], [0.0, 0.0, 0.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(square(x, y).tolist(), [-1.0, -0.5, 1.0, 5.0])
