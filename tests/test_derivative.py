"""Derivative schemes, on exact trajectories: what they declare is what they do."""

import math

import pytest
import torch

from pidistill.derivative import Central, ForwardMode, LogOdds, OneSided
from pidistill.residual import RESIDUALS, trajectory
from pidistill.schedule import karras_sigmas

BOTH_FORMS = pytest.mark.parametrize("form", RESIDUALS)


@pytest.fixture
def z(gaussian):
    generator = torch.Generator().manual_seed(0)
    return gaussian.sigma_max * torch.randn(5, 2, generator=generator, dtype=torch.float64)


def raw(student, z):
    """F as derivative schemes want it: noise levels (m, b) to values (m, b, ...)."""

    def F(nodes):
        repeated = z.repeat(len(nodes), *[1] * (z.ndim - 1))
        return student.F(repeated, nodes.flatten()).unflatten(0, (len(nodes), -1))

    return F


def residual(student, denoiser, scheme, z, sigma, form="data"):
    """The residual (b, ...) and the noise levels where the scheme posed the equation."""
    point = scheme(raw(student, z), torch.full((len(z),), sigma, dtype=torch.float64))
    x = trajectory(z, point.sigma, point.F, student.sigma_max)
    denoised = denoiser(x, point.sigma)
    prediction, target = RESIDUALS[form](z, point, denoised, student.sigma_max)
    return (prediction - target).detach(), point.sigma


def slope(errors):
    """Order that the last two of a list of errors show, the step halved from one to the next."""
    return math.log2(errors[-2] / errors[-1])


@BOTH_FORMS
@pytest.mark.parametrize("sigma", [80.0, 79.999, 60.0, 5.0, 0.3, 0.02, 0.002])
def test_an_exact_trajectory_has_no_residual(gaussian, gaussian_student, z, form, sigma):
    scheme = ForwardMode(gaussian.sigma_max)
    left, _ = residual(gaussian_student, gaussian, scheme, z, sigma, form)
    size = 1 if form == "data" else z.abs().max() / gaussian.sigma_max + 1 / sigma
    assert left.abs().max() < 1e-14 * size


@pytest.mark.parametrize("sigma", [80.0, 79.0, 40.0, 5.0, 0.5, 0.05, 0.002])
@pytest.mark.parametrize("scheme", [Central, LogOdds])
def test_a_central_difference_has_the_order_that_it_declares(
    gaussian, gaussian_student, z, scheme, sigma
):
    schemes = [scheme(gaussian.sigma_max, step) for step in (0.2, 0.1)]
    errors = [residual(gaussian_student, gaussian, s, z, sigma)[0].norm() for s in schemes]
    assert slope(errors) == pytest.approx(schemes[0].order, abs=0.1)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 1])
def test_the_one_sided_difference_has_the_order_that_it_declares(
    gaussian, gaussian_student, z, share
):
    """At a node that the grids have in common, which is `share` of the way down."""
    errors = []
    for num_nodes in (129, 257):
        scheme = OneSided(gaussian.sigma_min, gaussian.sigma_max, num_nodes)
        nodes = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
        sigma = nodes[int(share * (num_nodes - 1))].item()
        errors.append(residual(gaussian_student, gaussian, scheme, z, sigma)[0].norm())
    assert slope(errors) == pytest.approx(scheme.order, abs=0.1)


def test_the_one_sided_difference_pairs_every_node_with_the_next_and_the_last_with_n_minus_2():
    nodes = karras_sigmas(10, 0.002, 80.0)
    seen = []

    def F(levels):
        seen.append(levels)
        return torch.ones(*levels.shape, 1, dtype=torch.float64)

    point = OneSided(0.002, 80.0, 10)(F, nodes)
    (levels,) = seen
    assert torch.equal(point.sigma, nodes)
    assert torch.equal(levels[0], nodes)
    assert torch.equal(levels[1], nodes[[1, 2, 3, 4, 5, 6, 7, 8, 9, 8]])


@pytest.mark.parametrize(
    "scheme", [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
)
def test_the_derivative_of_a_constant_vanishes_exactly(scheme):
    """The weights of F - dF/dtau sum to 1, large as they are."""
    sigma = karras_sigmas(250, 0.002, 80.0)
    point = scheme(lambda nodes: torch.full((*nodes.shape, 3), 0.7, dtype=torch.float64), sigma)
    expected = torch.full((250, 3), 0.7, dtype=torch.float64)
    torch.testing.assert_close(point.F_minus_dF_dtau, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "scheme", [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
)
def test_it_is_the_published_difference_of_the_whole_student(gaussian_student, z, scheme):
    """`x - sigma dx/dsigma` computed naively at the scheme's own noise levels, in float64."""
    seen = []

    def recorded(nodes):
        seen.append(nodes.detach())
        return raw(gaussian_student, z)(nodes)

    sigma = torch.tensor([80.0, 30.0, 2.0, 0.1, 0.004], dtype=torch.float64)
    point = scheme(recorded, sigma)
    if isinstance(scheme, ForwardMode):
        x, dx_dsigma = torch.func.jvp(
            lambda levels: gaussian_student(z, levels), (sigma,), (torch.ones_like(sigma),)
        )
        naive = x - sigma[:, None] * dx_dsigma
    elif isinstance(scheme, LogOdds):
        upper, lower = raw(gaussian_student, z)(seen[0])
        naive = (upper + lower) / 2 - (upper - lower) / scheme.step
    else:
        a, b = seen[0]
        x_a, x_b = gaussian_student(z, a), gaussian_student(z, b)
        slope_of_x = (x_a - x_b) / (a - b)[:, None]
        naive = x_a - a[:, None] * slope_of_x
    torch.testing.assert_close(point.F_minus_dF_dtau, naive, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "scheme", [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
)
def test_noise_levels_stay_in_the_range_but_for_half_a_step(scheme):
    seen = []

    def F(levels):
        seen.append(levels.detach())
        return torch.zeros(*levels.shape, 1, dtype=torch.float64) + 0 * levels[..., None]

    point = scheme(F, karras_sigmas(250, 0.002, 80.0))
    assert torch.cat(seen).max() <= 80
    assert torch.cat(seen).min() > 0.002 * math.exp(-getattr(scheme, "step", 0) - 1e-9)
    assert point.sigma.max() <= 80


@pytest.mark.parametrize(
    "scheme", [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
)
def test_an_expanded_noise_level_is_as_good_as_a_full_one(gaussian_student, z, scheme):
    one = torch.tensor(3.0, dtype=torch.float64)
    expanded = scheme(raw(gaussian_student, z), one.expand(5))
    full = scheme(raw(gaussian_student, z), torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.equal(expanded.F_minus_dF_dtau, full.F_minus_dF_dtau)


@pytest.mark.parametrize(
    "scheme", [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
)
def test_every_evaluation_is_declared(scheme):
    """Samples that F is asked for, a Jacobian-vector product counting twice."""
    asked = []

    def F(levels):
        asked.append(levels.numel() * (2 if isinstance(scheme, ForwardMode) else 1))
        return levels[..., None] * 1.0

    scheme(F, torch.full((7,), 2.0, dtype=torch.float64))
    assert sum(asked) == 7 * scheme.evaluations
