"""Distances between a prediction and its target, one number per sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.distance import DISTANCES, l1, l2, pseudo_huber

POINTWISE = ("l2", "l1", "pseudo-huber")
"""The distances between samples of any shape; those between images have their own tests."""

every_distance = pytest.mark.parametrize(
    "distance", [DISTANCES[name] for name in POINTWISE], ids=POINTWISE
)
shapes = st.lists(st.integers(1, 4), min_size=2, max_size=4)


@every_distance
@given(shape=shapes, seed=st.integers(0, 100))
def test_it_is_a_symmetric_distance_of_each_sample(distance, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    together = distance(a, b)
    assert together.shape == (shape[0],)
    assert (together > 0).all()
    torch.testing.assert_close(together, distance(b, a))
    assert (distance(a, a) == 0).all()
    alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(shape[0])])
    torch.testing.assert_close(together, alone)


def test_l2_and_l1_are_means_over_the_sample():
    a, b = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -2.0], [3.0, 0.0]]]])
    assert l2(a, b).item() == pytest.approx(14 / 4)
    assert l1(a, b).item() == pytest.approx(6 / 4)


@given(st.floats(1e2, 1e6))
def test_pseudo_huber_is_the_norm_where_the_difference_is_large(size):
    difference = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * size
    norm = pseudo_huber(difference, torch.zeros(1, 2).double()).item()
    assert norm == pytest.approx(5 * size, rel=1e-4)


def test_pseudo_huber_is_a_parabola_where_the_difference_is_small():
    a = torch.tensor([[3e-6, 4e-6]], dtype=torch.float64)
    c = 0.00054 * 2**0.5
    value = pseudo_huber(a, torch.zeros(1, 2).double()).item()
    assert value == pytest.approx(25e-12 / (2 * c), rel=1e-4)


@every_distance
def test_its_gradient_is_finite_even_without_a_difference(distance):
    a = torch.zeros(2, 3, requires_grad=True)
    distance(a, torch.zeros(2, 3)).sum().backward()
    assert a.grad.isfinite().all()
