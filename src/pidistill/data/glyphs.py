r"""Glyphs: 32x32 colour images of ten shapes, generated from known factors.

A shape is the region of negative signed distance. The coverage of a pixel is `1/2 - distance /
pixel`, clipped to [0, 1], which makes edges one pixel wide. Everything is computed in float64 from
counter-based random numbers and rounded to 8 bits, so that every machine draws the same bytes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.data.dataset import Dataset
from pidistill.images import from_uint8
from pidistill.noise import Draws

SIZE = 32  # height and width in pixels
NUM_IMAGES = 20_000  # in the data set `glyphs`
REACH = 1.25  # how far a shape of radius 1 may extend from its centre
BATCH = 100  # images drawn at once; small enough for the CPU cache

Distance = Callable[[Tensor, Tensor], Tensor]
"""Signed distance at points (x to the right, y down) in units of the shape's radius."""


class Factors(NamedTuple):
    """Generative factors of images; each field has shape (n,), all but `label` are float64."""

    label: Tensor  # index into `CLASSES`, int64; sample i has label i modulo 10
    x: Tensor  # centre, to the right, -0.2 to 0.2; the image spans -1 to 1
    y: Tensor  # centre, downwards, -0.2 to 0.2
    radius: Tensor  # in the same unit, 0.5 to 0.7; shapes are never cut off
    angle: Tensor  # clockwise rotation in radians, -0.4 to 0.4
    hue: Tensor  # of the shape, in turns, 0 to 1
    ground_hue: Tensor  # of the background, 0.3 to 0.7 turns after `hue`
    light: Tensor  # direction in which the background gets lighter, in radians


def glyphs_factors(num: int, seed: int, first: int = 0) -> Factors:
    """Factors of samples `first .. first + num - 1`; sample i depends only on `seed` and i."""
    draws = Draws(seed, first, num)

    def between(low: float, high: float, stream: str) -> Tensor:
        return low + (high - low) * draws.uniform(f"glyphs {stream}")

    hue = between(0, 1, "hue")
    return Factors(
        label=torch.arange(first, first + num) % len(CLASSES),
        x=between(-0.2, 0.2, "x"),
        y=between(-0.2, 0.2, "y"),
        radius=between(0.5, 0.7, "radius"),
        angle=between(-0.4, 0.4, "angle"),
        hue=hue,
        ground_hue=(hue + between(0.3, 0.7, "ground hue")) % 1,
        light=between(0, 2 * math.pi, "light"),
    )


def glyphs_images(num: int, seed: int, first: int = 0) -> tuple[Tensor, Factors]:
    """Samples `first .. first + num - 1` of `seed`, and their factors.

    The images (num, 3, 32, 32) are float32 in [-1, 1], rounded to 8-bit levels.
    """
    factors = glyphs_factors(num, seed, first)
    images = torch.empty(num, 3, SIZE, SIZE)
    for label, distance in enumerate(CLASSES.values()):
        for rows in (factors.label == label).nonzero()[:, 0].split(BATCH):
            images[rows] = draw(Factors(*(values[rows] for values in factors)), distance)
    return images, factors


def load_glyphs() -> Dataset:
    """The data set `glyphs`: the first 20,000 samples of seed 0."""
    images, factors = glyphs_images(NUM_IMAGES, seed=0)
    return Dataset(images, factors.label, num_classes=len(CLASSES), name="glyphs")


def draw(factors: Factors, distance: Distance) -> Tensor:
    """Draw images (n, 3, 32, 32), float32, of the shape with this signed distance."""
    columns = (values[:, None, None] for values in factors)
    _, x, y, radius, angle, hue, ground_hue, light = columns
    line = (torch.arange(SIZE, dtype=torch.float64) + 0.5) * (2 / SIZE) - 1
    across, down = line[None, None, :], line[None, :, None]
    cos, sin = angle.cos() / radius, angle.sin() / radius
    u = cos * (across - x) + sin * (down - y)
    v = cos * (down - y) - sin * (across - x)
    near = u * u + v * v < REACH**2
    away = torch.full_like(u, math.inf)
    away[near] = distance(u[near], v[near])
    cover = (0.5 - away * radius * (SIZE / 2)).clamp(0, 1)[:, None]
    slope = (across * light.cos() + down * light.sin())[:, None]  # -sqrt(2) to sqrt(2)
    ground = colour(ground_hue, saturation=0.6, value=0.4 + 0.14 * slope)
    shape = colour(hue, saturation=0.5, value=torch.ones_like(slope))
    pixels = ground + cover * (shape - ground)
    return from_uint8((255 * pixels).round().to(torch.uint8))


def colour(hue: Tensor, *, saturation: float, value: Tensor) -> Tensor:
    """Convert hues (n, 1, 1) in turns and values (n, 1, h, w) to RGB (n, 3, h, w)."""
    offset = torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64)[:, None, None]
    sector = (offset + 6 * hue[:, None]) % 6
    strength = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value * (1 - saturation * strength)


def polygon(*corners: tuple[float, float]) -> Distance:
    """Signed distance to a simple polygon (even-odd rule)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        nearest = torch.full_like(x, math.inf)
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            squared = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
            nearest = torch.minimum(nearest, squared)
            if dy:
                inside ^= ((y < y0) != (y < y1)) & (x < x0 + (y - y0) * (dx / dy))
        return torch.where(inside, -nearest.sqrt(), nearest.sqrt())

    return distance


def circle(x0: float, y0: float, radius: float) -> Distance:
    """Signed distance to a disc."""
    return lambda x, y: ((x - x0) ** 2 + (y - y0) ** 2).sqrt() - radius


def union(*parts: Distance) -> Distance:
    """The union of shapes."""
    return lambda x, y: torch.stack([part(x, y) for part in parts]).amin(0)


def without(whole: Distance, hole: Distance) -> Distance:
    """The shape `whole` minus `hole`."""
    return lambda x, y: torch.maximum(whole(x, y), -hole(x, y))


def regular(num: int, *radii: float) -> list[tuple[float, float]]:
    """Corners at `num` equal angles, clockwise from the top, cycling through `radii`."""
    turns = [2 * math.pi * i / num for i in range(num)]
    return [
        (radii[i % len(radii)] * math.sin(turn), -radii[i % len(radii)] * math.cos(turn))
        for i, turn in enumerate(turns)
    ]


CLASSES: dict[str, Distance] = {
    "disc": circle(0, 0, 0.9),
    "ring": without(circle(0, 0, 1), circle(0, 0, 0.55)),
    "square": polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": polygon(*regular(3, 1.15)),
    "cross": union(
        polygon((-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)),
        polygon((-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)),
    ),
    "star": polygon(*regular(10, 1.15, 0.5)),
    "crescent": without(circle(0.1, 0, 1), circle(0.62, -0.1, 0.74)),
    "heart": union(
        circle(-0.45, -0.25, 0.55),
        circle(0.45, -0.25, 0.55),
        polygon((0, -0.7), (0.86, 0.08), (0, 1), (-0.86, 0.08)),
    ),
    "arrow": polygon(
        (0, -1.05), (0.85, -0.1), (0.32, -0.1), (0.32, 1), (-0.32, 1), (-0.32, -0.1), (-0.85, -0.1)
    ),
    "bolt": polygon(
        (0.42, -1.05), (-0.75, 0.25), (-0.12, 0.25), (-0.42, 1.05), (0.75, -0.25), (0.12, -0.25)
    ),
}
"""Signed distances of the ten classes in label order: centred at the origin, size about 1."""
