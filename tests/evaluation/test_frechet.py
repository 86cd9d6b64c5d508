"""The Frechet distance, against closed forms and the textbook formula."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation.frechet import Statistics, frechet_distance, statistics

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


def test_singular_covariances_on_different_axes_have_a_closed_form():
    """Two segments at a right angle: nothing of one is explained by the other."""
    zero = torch.zeros(3, dtype=torch.float64)
    first = Statistics(zero, torch.diag(torch.tensor([4.0, 0, 0], dtype=torch.float64)))
    second = Statistics(zero, torch.diag(torch.tensor([0, 9.0, 0], dtype=torch.float64)))
    assert frechet_distance(first, second) == pytest.approx(13)
    point = Statistics(zero, torch.zeros(3, 3, dtype=torch.float64))
    assert frechet_distance(first, point) == pytest.approx(4)


@given(st.integers(2, 30), sizes, seeds)
def test_statistics_are_those_of_numpy(num, size, seed):
    features = torch.randn(num, size, generator=torch.Generator().manual_seed(seed))
    fitted = statistics(features)
    np.testing.assert_allclose(fitted.mean, features.double().numpy().mean(0), atol=1e-12)
    np.testing.assert_allclose(
        fitted.covariance,
        np.cov(features.double().numpy(), rowvar=False).reshape(size, size),
        atol=1e-12,
    )


def test_statistics_keep_their_digits_far_from_zero():
    features = 1e6 + torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        statistics(features).covariance, statistics(features - 1e6).covariance, rtol=1e-6, atol=1e-6
    )


def test_samples_of_one_distribution_are_near():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 20_000, 8, generator=generator)
    assert frechet_distance(statistics(first), statistics(second)) < 0.02
    assert frechet_distance(statistics(first), statistics(second + 1)) == pytest.approx(8, rel=0.05)


def test_features_that_will_not_do_are_refused():
    with pytest.raises(PidistillError, match="expected at least 2"):
        statistics(torch.zeros(1, 3))
    with pytest.raises(PidistillError, match="not finite"):
        statistics(torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]))
