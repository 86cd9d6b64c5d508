"""Precision and recall, nearest neighbours and duplicates, against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation import neighbours
from pidistill.evaluation.neighbours import (
    LOOK_THE_SAME,
    Nearest,
    fingerprints,
    nearest_among,
    neighbour_metrics,
    precision_recall,
)
from pidistill.evaluation.trajectory import per_sample_rms

seeds = st.integers(0, 1000)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(x, y):
    """From the paper: how many samples' three-neighbour balls contain each point."""

    def share_inside(points, centres):
        distances = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
        radii = distances.sort(1).values[:, 3]
        to_centres = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        return (to_centres <= radii).any(1).double().mean().item()

    return share_inside(x.double(), y.double()), share_inside(y.double(), x.double())


@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 4), st.integers(1, 17), seeds)
def test_it_is_the_definition_whatever_the_tiles(n, m, size, tile, seed):
    x, y = draw(n, size, seed=seed), 1.2 * draw(m, size, seed=seed + 1) + 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE", tile)
        assert precision_recall(x, y) == pytest.approx(by_definition(x, y))


@given(st.integers(4, 30), st.integers(4, 30), seeds)
def test_it_is_the_definition_where_distances_tie(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, 3, (num, 2), generator=generator).float() + 1000.0 for num in (n, m))
    assert precision_recall(x, y) == pytest.approx(by_definition(x, y))


def test_a_collapsed_sample_is_precise_and_recalls_nothing():
    """The balls of one repeated point have radius zero, despite rounding."""
    reference = draw(60, 32) * 50
    collapsed = reference[7:8].repeat(40, 1)
    assert precision_recall(collapsed, reference) == (1, 1 / 60)


def test_too_few_samples_are_refused():
    with pytest.raises(PidistillError, match=r"3 sample\(s\) have no third neighbour"):
        precision_recall(draw(3, 2), draw(9, 2))
    with pytest.raises(PidistillError, match=r"3 reference sample\(s\)"):
        precision_recall(draw(9, 2), draw(3, 2))


@pytest.mark.metrics
def test_it_is_that_of_torch_fidelity():
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = draw(700, 24).relu(), (1.2 * draw(900, 24, seed=1)).relu()
    theirs = metric_prc.prc_features_to_metric(x.double(), y.double(), verbose=False)
    ours = precision_recall(x, y)
    assert 0.05 < ours.recall < ours.precision < 0.95 or 0.05 < ours.precision < 0.95
    assert ours.precision == pytest.approx(theirs[metric_prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert ours.recall == pytest.approx(theirs[metric_prc.KEY_METRIC_RECALL], abs=1e-6)


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


def test_what_neighbours_say():
    own = Nearest(torch.tensor([0.0, LOOK_THE_SAME / 2, 0.5]), torch.zeros(3))
    teacher = Nearest(torch.tensor([0.3, 0.4, 0.5]), torch.zeros(3))
    values = {"num_samples": 3, "median": LOOK_THE_SAME / 2, "least": 0, "look_the_same": 2}
    assert neighbour_metrics(own, None) == pytest.approx(values)
    values |= {"teacher_median": 0.4, "teacher_least": 0.3, "teacher_look_the_same": 0}
    assert neighbour_metrics(own, teacher) == pytest.approx(values)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 30))
def test_fingerprints_are_equal_where_samples_are(values, cut):
    for dtype in (torch.float32, torch.uint8):
        x = torch.tensor(values).to(dtype).reshape(-1, 1, 1, 1)
        prints = fingerprints(x)
        same = torch.tensor(values)[:, None] == torch.tensor(values)
        assert torch.equal(prints[:, None] == prints, same)
        parts = [fingerprints(part) for part in (x[:cut], x[cut:]) if len(part)]
        assert torch.equal(torch.cat(parts), prints)
