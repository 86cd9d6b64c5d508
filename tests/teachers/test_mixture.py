"""Closed-form mixtures, against the definition of a denoiser."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pidistill import PidistillError, load_teacher
from pidistill.ode import velocity
from pidistill.teachers.mixture import MIXTURES, MixtureDenoiser, gaussian_trajectory

every_mixture = pytest.mark.parametrize("name", MIXTURES)


def log_density(mixture, x, sigma):
    """log p(x; sigma) for flat `x` (b, d), from torch's distributions."""
    basis, size = mixture.basis, mixture.means.shape[1]
    noise = sigma**2 * torch.eye(size, dtype=torch.float64)
    covariance = basis @ torch.diag_embed(mixture.variances) @ basis.mT + noise
    components = MultivariateNormal(mixture.means, covariance)
    return MixtureSameFamily(Categorical(logits=mixture.log_prior), components).log_prob(x)


def noisy(mixture, sigma, num=6):
    generator = torch.Generator().manual_seed(0)
    x0 = mixture.draw(num, generator)
    return x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)


@every_mixture
@pytest.mark.parametrize("sigma", [0.03, 0.3, 2.0, 30.0])
def test_the_denoiser_is_tweedies_formula(name, sigma):
    """`D(x, sigma) = x + sigma^2 grad log p(x; sigma)`."""
    mixture = load_teacher(f"mixture:{name}")
    x = noisy(mixture, sigma)
    flat = x.flatten(1).requires_grad_()
    (score,) = torch.autograd.grad(log_density(mixture, flat, sigma).sum(), flat)
    denoised = mixture(x, torch.full((len(x),), sigma, dtype=torch.float64))
    expected = (flat + sigma**2 * score).reshape(x.shape)
    torch.testing.assert_close(denoised, expected, rtol=1e-8, atol=1e-8)


def test_the_denoiser_is_the_posterior_mean_by_numerical_integration():
    """In one dimension: the integral of x0 p(x0) N(x; x0, sigma^2), divided by that without x0."""
    means = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    variances = torch.tensor([[0.2], [0.05], [0.4]], dtype=torch.float64)
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mixture = MixtureDenoiser(means, variances, prior=prior)
    x0 = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = (prior * torch.exp(-((x0[:, None] - means.T) ** 2) / 2 / variances.T)) @ (
        1 / variances[:, 0].sqrt()
    )
    for x, sigma in [(0.0, 0.3), (1.2, 0.1), (-3.0, 1.0), (5.0, 2.0)]:
        weight = density * torch.exp(-((x - x0) ** 2) / 2 / sigma**2)
        expected = (weight * x0).sum() / weight.sum()
        actual = mixture(x0.new_full((1, 1), x), x0.new_full((1,), sigma))
        assert actual.item() == pytest.approx(expected.item(), rel=1e-8)


def test_a_label_selects_a_component_and_minus_one_none():
    ring = load_teacher("mixture:ring")
    x, sigma = noisy(ring, 0.5, 9), torch.full((9,), 0.5, dtype=torch.float64)
    labelled = ring(x, sigma, torch.arange(-1, 8))
    torch.testing.assert_close(labelled[:1], ring(x[:1], sigma[:1]))
    for k in range(8):
        row = slice(k + 1, k + 2)
        alone = MixtureDenoiser(ring.means[k : k + 1], ring.variances[k : k + 1])
        torch.testing.assert_close(labelled[row], alone(x[row], sigma[row]))


@every_mixture
def test_samples_have_the_mean_the_deviation_and_the_shape_that_are_stated(name):
    mixture = load_teacher(f"mixture:{name}")
    x0 = mixture.draw(20_000, torch.Generator().manual_seed(0))
    assert x0.shape[1:] == mixture.sample_shape
    identity = torch.eye(mixture.means.shape[1], dtype=torch.float64).expand_as(mixture.basis)
    torch.testing.assert_close(mixture.basis.mT @ mixture.basis, identity, rtol=0, atol=1e-12)
    mean = mixture.log_prior.exp() @ mixture.means
    error = (x0.flatten(1).mean(0) - mean).abs()
    assert (error < 5 * x0.flatten(1).std(0) / len(x0) ** 0.5).all()
    assert (x0.flatten(1) - mean).square().mean().sqrt().item() == pytest.approx(
        mixture.sigma_data, rel=0.02
    )


def test_samples_have_the_covariance_of_the_anisotropic_gaussian(gaussian):
    x0 = gaussian.draw(50_000, torch.Generator().manual_seed(0))
    basis, variances = gaussian.basis[0], gaussian.variances[0]
    expected = basis @ variances.diag() @ basis.T
    torch.testing.assert_close(torch.cov(x0.T), expected, rtol=0.03, atol=0.01)
    assert expected[0, 1].abs() > 0.1  # the axes are turned


@pytest.mark.parametrize("sigma", [80.0, 10.0, 0.5, 0.002])
def test_the_exact_trajectory_satisfies_the_equation(gaussian, sigma):
    z = noisy(gaussian, 80.0)
    level = torch.tensor([sigma], dtype=torch.float64)

    def at(sigma):
        return gaussian_trajectory(gaussian, z, sigma.expand(len(z)))

    torch.testing.assert_close(at(torch.tensor([80.0])), z, rtol=1e-13, atol=1e-13)
    x, dx_dsigma = torch.func.jvp(at, (level,), (torch.ones_like(level),))
    torch.testing.assert_close(dx_dsigma, velocity(gaussian, x, level), rtol=1e-9, atol=1e-12)


def test_the_student_of_the_tests_is_the_exact_trajectory(
    gaussian, gaussian_student, interior_sigmas
):
    z = noisy(gaussian, 80.0, len(interior_sigmas))
    torch.testing.assert_close(
        gaussian_student(z, interior_sigmas), gaussian_trajectory(gaussian, z, interior_sigmas)
    )


def test_only_a_single_gaussian_has_trajectories_in_closed_form():
    with pytest.raises(ValueError, match="8 components; expected one"):
        gaussian_trajectory(load_teacher("mixture:ring"), torch.zeros(1, 2), torch.ones(1))


def test_an_unknown_mixture_is_refused():
    with pytest.raises(PidistillError, match="unknown mixture 'torus'; expected one of gaussian"):
        load_teacher("mixture:torus")


def test_a_prior_is_scaled_to_one():
    means = torch.tensor([[0.0], [1.0]])
    mixture = MixtureDenoiser(means, torch.ones(2, 1), prior=torch.tensor([1.0, 3.0]))
    assert mixture.log_prior.exp().tolist() == pytest.approx([0.25, 0.75])
    assert mixture.sigma_data == pytest.approx(math.sqrt(1 + 3 / 16))
