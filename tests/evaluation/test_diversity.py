"""Nearest neighbours by brute force, and duplicates counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.evaluation import neighbours
from pidistill.evaluation.diversity import (
    LOOK_THE_SAME,
    Nearest,
    count_duplicates,
    fingerprints,
    nearest_among,
    neighbour_metrics,
)
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.images import from_uint8


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_nearest_is_the_one_that_brute_force_finds(num, others, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 3, 2, generator=generator) for n in (num, others))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE", 5)
        found = nearest_among(x, y)
    for sample, distance, which in zip(x, found.distance, found.which, strict=True):
        distances = per_sample_rms(sample.expand_as(y), y)
        assert distance.item() == pytest.approx(distances.min().item(), rel=1e-9)
        assert which == distances.argmin()


def test_a_sample_is_not_its_own_neighbour(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 2)
    x = torch.tensor([[0.0], [1.0], [10.0], [11.5], [100.0]])
    found = nearest_among(x, x)
    assert found.which.tolist() == [1, 0, 3, 2, 3]
    assert found.distance.tolist() == pytest.approx([1, 1, 1.5, 1.5, 88.5])
    assert nearest_among(x, x.clone()).distance.max() == 0


def test_pixels_are_compared_on_the_scale_of_samples():
    pixels = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    from_bytes, from_floats = nearest_among(pixels, pixels), None
    floats = from_uint8(pixels)
    from_floats = nearest_among(floats, floats)
    assert torch.equal(from_bytes.which, from_floats.which)
    torch.testing.assert_close(from_bytes.distance, from_floats.distance)


def test_what_neighbours_say():
    own = Nearest(torch.tensor([0.0, LOOK_THE_SAME / 2, 0.5]), torch.zeros(3))
    teacher = Nearest(torch.tensor([0.3, 0.4, 0.5]), torch.zeros(3))
    values = neighbour_metrics(own, teacher)
    assert values == pytest.approx(
        {
            "num_samples": 3,
            "median": LOOK_THE_SAME / 2,
            "least": 0,
            "look_the_same": 2,
            "teacher_median": 0.4,
            "teacher_least": 0.3,
            "teacher_look_the_same": 0,
        }
    )
    assert not any(name.startswith("teacher") for name in neighbour_metrics(own, None))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_duplicates_are_counted_bit_for_bit(values):
    x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)
    assert count_duplicates(fingerprints(x)) == len(values) - len(set(values))
    assert count_duplicates(fingerprints(x.to(torch.uint8))) == len(values) - len(set(values))
    part = torch.cat([fingerprints(x[:3]), fingerprints(x[3:])]) if len(x) > 3 else fingerprints(x)
    assert torch.equal(part, fingerprints(x))
