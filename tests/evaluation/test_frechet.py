"""The Frechet distance, against closed forms and the textbook formula."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation import frechet
from pidistill.evaluation.frechet import (
    Statistics,
    frechet_distance,
    split_half_distance,
    statistics,
)
from pidistill.noise import Draws

sizes = st.integers(1, 12)
seeds = st.integers(0, 1000)


def random_statistics(size, seed, rank=None):
    """Random mean and covariance of a given rank (full by default)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or size, generator=generator, dtype=torch.float64)
    return Statistics(
        torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T
    )


@given(sizes, seeds, seeds)
def test_it_is_the_textbook_formula(size, seed, other):
    first, second = random_statistics(size, seed), random_statistics(size, 10_000 + other)
    root = scipy.linalg.sqrtm((first.covariance @ second.covariance).numpy())
    expected = (first.mean - second.mean).square().sum().item() + np.trace(
        first.covariance.numpy() + second.covariance.numpy() - 2 * root.real
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(sizes, st.floats(0, 10), st.floats(0.01, 100), st.floats(0.01, 100))
def test_isotropic_gaussians_have_a_closed_form(size, shift, first, second):
    """`d shift^2 + d (sqrt(v1) - sqrt(v2))^2`."""
    eye = torch.eye(size, dtype=torch.float64)
    a = Statistics(torch.zeros(size, dtype=torch.float64), first * eye)
    b = Statistics(torch.full((size,), shift, dtype=torch.float64), second * eye)
    expected = size * (shift**2 + (first**0.5 - second**0.5) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(sizes, seeds, seeds, st.integers(1, 12))
def test_it_is_symmetric_even_where_a_covariance_is_singular(size, seed, other, rank):
    first = random_statistics(size, seed, rank=min(rank, size))
    second = random_statistics(size, 10_000 + other)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-6, abs=1e-6)
    assert there > 0


@given(sizes, seeds, st.integers(1, 12))
def test_it_vanishes_between_a_gaussian_and_itself(size, seed, rank):
    gaussian = random_statistics(size, seed, rank=min(rank, size))
    size = gaussian.covariance.trace().item()
    assert frechet_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-6 * (1 + size))


def test_statistics_keep_their_digits_far_from_zero():
    features = 1e6 + torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        statistics(features).covariance, statistics(features - 1e6).covariance, rtol=1e-6, atol=1e-6
    )


@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 60), seeds)
def test_few_samples_of_many_features_have_an_exact_answer(n, m, size, seed):
    r"""With centred features $A$, $B$ the trace of the root is the nuclear norm of $A B^T$.

    This never forms a covariance, so nothing is lost where it is singular.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(num, size, generator=generator, dtype=torch.float64) for num in (n, m))
    fitted = frechet_distance(statistics(a), statistics(b))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (a - a.mean(0)) / (n - 1) ** 0.5, (b - b.mean(0)) / (m - 1) ** 0.5
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    expected = shift + a.square().sum() + b.square().sum() - 2 * overlap
    assert fitted == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


def test_what_has_no_distance_is_refused_and_not_repaired():
    with pytest.raises(PidistillError, match="expected at least 2"):
        statistics(torch.zeros(1, 3))
    with pytest.raises(PidistillError, match="not finite"):
        statistics(torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]))
    with pytest.raises(PidistillError, match="of 3 and of 4 features"):
        frechet_distance(random_statistics(3, 0), random_statistics(4, 0))
    good = random_statistics(2, 0)
    for values in ([1.0, -1e-3], [-1.0, -2.0], [torch.nan, 1.0]):
        bad = good._replace(covariance=torch.diag(torch.tensor(values, dtype=torch.float64)))
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(PidistillError, match="covariance"):
                frechet_distance(*pair)


@given(st.integers(1, 9), st.integers(2, 40), sizes, seeds)
def test_statistics_are_those_of_numpy_whatever_the_blocks(block, num, size, seed):
    features = 100 + torch.randn(num, size, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "BLOCK", block)
        fitted = statistics(features)
    whole = features.double().numpy()
    np.testing.assert_allclose(fitted.mean, whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        fitted.covariance, np.cov(whole, rowvar=False).reshape(size, size), atol=1e-10
    )


def test_the_halves_are_random_and_hold_every_sample_once():
    features = torch.randn(231, 5, generator=torch.Generator().manual_seed(0)).cumsum(0)
    shuffled = features[Draws(0, 0, 231).uniform("split").argsort()]
    expected = frechet_distance(statistics(shuffled[:115]), statistics(shuffled[115:]))
    assert split_half_distance(features) == pytest.approx(expected, rel=1e-9)


@pytest.mark.metrics
@pytest.mark.parametrize(("num", "size"), [(3000, 64), (700, 600)])
def test_it_is_that_of_torch_fidelity(num, size):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    x = (torch.randn(num, size, generator=generator, dtype=torch.float64) @ mix).relu()
    y = (torch.randn(num, size, generator=generator, dtype=torch.float64) @ mix * 1.2).relu()
    theirs = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(v) for v in (x, y)), verbose=False
    )
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(
        theirs[metric_fid.KEY_METRIC_FID], rel=1e-6
    )
