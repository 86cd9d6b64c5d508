"""Derivative schemes, on exact trajectories: what they declare is what they do."""

import math

import pytest
import torch

from pidistill.derivative import Central, ForwardMode, OneSided
from pidistill.residual import RESIDUALS
from pidistill.schedule import karras_sigmas

SCHEMES = [OneSided(0.002, 80.0, 250), Central(80.0), ForwardMode()]

every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)


def share(sigma):
    return sigma / 80.0


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
    """The residual (b, ...) for every `z` at one noise level."""
    levels = torch.full((len(z),), sigma, dtype=torch.float64)
    point = scheme(raw(student, z), student.share, levels)
    x = student.blend(z, point.sigma, point.F)
    prediction, target = RESIDUALS[form](x, point, denoiser(x, point.sigma))
    return (prediction - target).detach()


def order(errors):
    """Order that two errors show, the step halved from one to the next."""
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("form", RESIDUALS)
@pytest.mark.parametrize("sigma", [80.0, 79.999, 60.0, 5.0, 0.3, 0.02, 0.002])
def test_an_exact_trajectory_has_no_residual(gaussian, gaussian_student, z, form, sigma):
    left = residual(gaussian_student, gaussian, ForwardMode(), z, sigma, form)
    size = 1 if form == "data" else z.abs().max() / gaussian.sigma_max + 1 / sigma
    assert left.abs().max() < 1e-14 * size


@pytest.mark.parametrize("sigma", [80.0, 79.0, 40.0, 5.0, 0.5, 0.05, 0.002])
def test_the_central_difference_has_the_order_that_it_declares(
    gaussian, gaussian_student, z, sigma
):
    schemes = [Central(gaussian.sigma_max, step) for step in (0.2, 0.1)]
    errors = [residual(gaussian_student, gaussian, s, z, sigma).norm() for s in schemes]
    assert order(errors) == pytest.approx(schemes[0].order, abs=0.1)


@pytest.mark.parametrize("down", [0, 0.25, 0.5, 0.75, 1])
def test_the_one_sided_difference_has_the_order_that_it_declares(
    gaussian, gaussian_student, z, down
):
    """At a node that the grids have in common, a part `down` of the way."""
    errors = []
    for num_nodes in (129, 257):
        scheme = OneSided(gaussian.sigma_min, gaussian.sigma_max, num_nodes)
        nodes = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
        sigma = nodes[int(down * (num_nodes - 1))].item()
        errors.append(residual(gaussian_student, gaussian, scheme, z, sigma).norm())
    assert order(errors) == pytest.approx(scheme.order, abs=0.1)


def test_the_one_sided_difference_pairs_every_node_with_the_next_and_the_last_with_n_minus_2():
    nodes = karras_sigmas(10, 0.002, 80.0)
    seen = []

    def F(levels):
        seen.append(levels)
        return torch.ones(*levels.shape, 1, dtype=torch.float64)

    point = OneSided(0.002, 80.0, 10)(F, share, nodes)
    (levels,) = seen
    assert torch.equal(point.sigma, nodes)
    assert torch.equal(levels[0], nodes)
    assert torch.equal(levels[1], nodes[[1, 2, 3, 4, 5, 6, 7, 8, 9, 8]])


@every_scheme
def test_it_is_the_difference_of_the_whole_student(gaussian_student, z, scheme):
    """`x - sigma dx/dsigma` computed naively at the scheme's own noise levels, in float64."""
    seen = []

    def recorded(nodes):
        seen.append(nodes.detach())
        return raw(gaussian_student, z)(nodes)

    sigma = torch.tensor([80.0, 30.0, 2.0, 0.1, 0.004], dtype=torch.float64)
    point = scheme(recorded, gaussian_student.share, sigma)
    if isinstance(scheme, ForwardMode):
        x, dx_dsigma = torch.func.jvp(
            lambda levels: gaussian_student(z, levels), (sigma,), (torch.ones_like(sigma),)
        )
        naive = x - sigma[:, None] * dx_dsigma
    else:
        a, b = seen[0]
        x_a, x_b = gaussian_student(z, a), gaussian_student(z, b)
        naive = x_a - a[:, None] * (x_a - x_b) / (a - b)[:, None]
    torch.testing.assert_close(point.intercept, naive, rtol=0, atol=1e-9)


@every_scheme
def test_weights_noise_levels_and_costs(scheme):
    """The weights sum to 1, large as they are; levels stay in the range but for half a step."""
    seen, sigma = [], karras_sigmas(250, 0.002, 80.0)

    def constant(nodes):
        seen.append(nodes.detach())
        return 0.7 + 0 * nodes[..., None].expand(*nodes.shape, 3)

    point = scheme(constant, share, sigma)
    expected = torch.full((250, 3), 0.7, dtype=torch.float64)
    torch.testing.assert_close(point.intercept, expected, rtol=1e-13, atol=0)
    levels = torch.cat(seen)
    assert levels.max() <= 80
    assert levels.min() > 0.002 * math.exp(-getattr(scheme, "step", 0) - 1e-9)
    assert point.sigma.max() <= 80
    with_tangent = 2 if isinstance(scheme, ForwardMode) else 1
    assert levels.numel() * with_tangent == 250 * scheme.evaluations


@every_scheme
def test_an_expanded_noise_level_is_as_good_as_a_full_one(gaussian_student, z, scheme):
    one = torch.tensor(3.0, dtype=torch.float64)
    F, s = raw(gaussian_student, z), gaussian_student.share
    full = scheme(F, s, torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.equal(scheme(F, s, one.expand(5)).intercept, full.intercept)
