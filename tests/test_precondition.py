"""The table of preconditionings, by what each of its rows promises."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.precondition import (
    EDMPrecondition,
    IDDPMPrecondition,
    VEPrecondition,
    VPPrecondition,
)

TABLE = [EDMPrecondition(), VPPrecondition(), VEPrecondition(), IDDPMPrecondition()]
levels = st.floats(1e-3, 1e3).map(lambda sigma: torch.tensor([sigma], dtype=torch.float64))
of_the_table = st.sampled_from(TABLE)


@given(levels)
def test_edm_keeps_the_variance_at_one(sigma):
    """Unit variance of the input and of the training target (Karras et al. 2022, appendix B.6)."""
    c_skip, c_out, c_in, _ = EDMPrecondition().scales(sigma)
    variance = 0.5**2
    torch.testing.assert_close(c_in**2 * (variance + sigma**2), torch.ones(1).double())
    target = ((1 - c_skip) ** 2 * variance + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target, torch.ones(1).double())


@pytest.mark.parametrize("precondition", [VPPrecondition(), IDDPMPrecondition()])
@given(sigma=levels)
def test_a_perfect_prediction_of_the_noise_gives_the_clean_sample(precondition, sigma):
    x0, eps = 0.3, -1.2
    c_skip, c_out, c_in, _ = precondition.scales(sigma)
    x = x0 + sigma * eps
    torch.testing.assert_close(c_skip * x + c_out * eps, torch.full_like(sigma, x0))
    torch.testing.assert_close(c_in, 1 / (1 + sigma**2).sqrt())


@given(levels)
def test_ve_predicts_the_noise_with_the_sign_turned_from_an_unscaled_input(sigma):
    c_skip, c_out, c_in, _ = VEPrecondition().scales(sigma)
    x = 0.3 + sigma * -1.2
    torch.testing.assert_close(c_skip * x + c_out * 1.2, torch.full_like(sigma, 0.3))
    assert c_in.item() == 1


@given(of_the_table, levels)
def test_smooth_c_noise_has_the_derivative_that_a_difference_shows(precondition, sigma):
    sigma = sigma.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        precondition.smooth_c_noise, sigma, eps=1e-6 * sigma.item(), rtol=1e-3, atol=1e-6
    )


@given(of_the_table, levels)
def test_smooth_c_noise_is_what_the_network_sees(precondition, sigma):
    """Exactly, except for improved DDPM, whose network sees the nearest whole index."""
    seen = precondition.scales(sigma).c_noise
    whole = isinstance(precondition, IDDPMPrecondition)
    inside = precondition.sigma_min <= sigma.item() <= precondition.sigma_max
    if not whole:
        torch.testing.assert_close(precondition.smooth_c_noise(sigma), seen, rtol=0, atol=0)
    elif inside:
        assert (precondition.smooth_c_noise(sigma) - seen).abs().item() <= 0.6


@pytest.mark.parametrize("precondition", TABLE)
def test_the_factors_keep_the_dtype_and_the_shape(precondition):
    for dtype in (torch.float32, torch.float64):
        sigma = torch.tensor([0.1, 1.0, 5.0], dtype=dtype)
        for factor in (*precondition.scales(sigma), precondition.smooth_c_noise(sigma)):
            assert factor.shape == (3,)
            assert factor.dtype == dtype


@pytest.mark.parametrize("precondition", TABLE)
def test_the_range_is_in_order_and_survives_a_copy(precondition):
    assert 0 < precondition.sigma_min < precondition.sigma_max < math.inf
    assert type(precondition)(**dataclasses.asdict(precondition)) == precondition
