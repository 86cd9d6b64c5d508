"""The kernel distance and the Inception Score: definitions, closed forms, torch-fidelity."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation import scores
from pidistill.evaluation.scores import (
    cubic_kernel,
    inception_score,
    kernel_distance,
    unbiased_mmd,
)

seeds = st.integers(0, 1000)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 5), seeds)
def test_the_estimate_is_the_sum_over_distinct_pairs(n, m, size, seed):
    x, y = draw(n, size, seed=seed), draw(m, size, seed=seed + 1) + 0.5

    def k(a, b):
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / size + 1) ** 3

    expected = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    expected -= 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    assert unbiased_mmd(x, y).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_its_expectation_is_the_closed_form_of_gaussians(shift, scale):
    r"""In one dimension, $k(x, y) = \sum_j \binom{3}{j} x^j y^j$ compares moments."""

    def moments(mean, std):
        return [mean, mean**2 + std**2, mean**3 + 3 * mean * std**2]

    differences = [a - b for a, b in zip(moments(0, 1), moments(shift, scale), strict=True)]
    expected = sum(c * d**2 for c, d in zip((3, 3, 1), differences, strict=True))
    x, y = draw(4000, 8, 1, seed=1), shift + scale * draw(4000, 6, 1, seed=2)
    estimates = torch.stack([unbiased_mmd(a, b) for a, b in zip(x, y, strict=True)])
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - expected) < 4 * error
    biased = torch.stack(
        [
            cubic_kernel(a, a).mean() + cubic_kernel(b, b).mean() - 2 * cubic_kernel(a, b).mean()
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert biased.mean() - expected > 4 * error  # so that the test can tell


def test_few_features_are_one_subset(monkeypatch):
    x, y = draw(20, 3).float(), draw(30, 3, seed=1).float() + 1
    distance = kernel_distance(x, y[:20])
    assert distance.value == pytest.approx(unbiased_mmd(x.double(), y[:20].double()).item())
    assert distance.spread == pytest.approx(0, abs=1e-12)
    monkeypatch.setattr(scores, "SUBSET_SIZE", 10)
    assert kernel_distance(x, y).spread > 0
    assert kernel_distance(x, y) == kernel_distance(x, y)
    with pytest.raises(PidistillError, match="at least 2"):
        kernel_distance(x[:1], y)


@pytest.mark.metrics
@pytest.mark.parametrize("size", [16, 300])
def test_the_kernel_distance_is_that_of_torch_fidelity(size, monkeypatch):
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    monkeypatch.setattr(scores, "SUBSETS", 10)
    x, y = draw(1500, size).relu(), draw(1200, size, seed=1).relu() * 1.1
    theirs = metric_kid.kid_features_to_metric(x, y, kid_subsets=10, verbose=False)
    ours = kernel_distance(x, y)
    assert ours.value == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert ours.spread == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-6)


def random_logits(num, classes, seed=0):
    return 3 * torch.randn(num, classes, generator=torch.Generator().manual_seed(seed))


@given(st.integers(20, 60), st.integers(1, 7), seeds)
def test_the_inception_score_is_the_definition_on_each_tenth(num, classes, seed):
    logits = random_logits(num, classes, seed)
    splits = 10
    expected = []
    for i in range(splits):
        p = logits[i * num // splits : (i + 1) * num // splits].double().softmax(1)
        expected.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    values = torch.stack(expected)
    assert inception_score(logits) == pytest.approx(
        (values.mean().item(), values.std(correction=0).item()), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (1000.0 * torch.eye(7).repeat(100, 1), 7),  # sure, and even over the classes
        (1000.0 * torch.eye(7)[:1].repeat(50, 1), 1),  # sure of one class
        (random_logits(1, 5).repeat(40, 1), 1),  # the same whatever the sample
    ],
)
def test_inception_scores_that_are_known(logits, expected):
    assert inception_score(logits) == pytest.approx((expected, 0))


@pytest.mark.metrics
def test_the_inception_score_is_that_of_torch_fidelity():
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = random_logits(1003, 20)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits)
    assert ours.value == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert ours.spread == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_STD], rel=1e-6)
