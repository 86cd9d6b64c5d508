"""The table of preconditionings, by what each of its rows promises."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.errors import PidistillError
from pidistill.precondition import (
    PRECONDITIONS,
    DiscreteVEPrecondition,
    DiscreteVPPrecondition,
    EDMPrecondition,
    FlowPrecondition,
    IDDPMPrecondition,
    SubVPPrecondition,
    TimestepEDMPrecondition,
    VEPrecondition,
    VPPrecondition,
    build_precondition,
)
from pidistill.precondition.discrete import discrete_sigmas

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SIGMAS = discrete_sigmas(ALPHAS_CUMPROD)


def discrete(prediction_type="epsilon"):
    return DiscreteVPPrecondition(
        ALPHAS_CUMPROD.tolist(), SIGMAS[0].item(), SIGMAS[-1].item(), prediction_type
    )


CONTINUOUS = [
    EDMPrecondition(),
    VPPrecondition(),
    VEPrecondition(),
    IDDPMPrecondition(),
    FlowPrecondition(0.01, 9.0),
    TimestepEDMPrecondition(),
    DiscreteVEPrecondition(),
    SubVPPrecondition(),
]
TABLE = [*CONTINUOUS, discrete("sample")]
levels = st.floats(1e-3, 1e3).map(lambda sigma: torch.tensor([sigma], dtype=torch.float64))
every_row = pytest.mark.parametrize("precondition", TABLE, ids=lambda p: type(p).__name__)


def test_the_table_is_complete():
    assert {type(precondition) for precondition in TABLE} == set(PRECONDITIONS.values())


@every_row
def test_it_comes_back_from_json(precondition):
    name = next(name for name, cls in PRECONDITIONS.items() if type(precondition) is cls)
    again = build_precondition(name, json.loads(json.dumps(dataclasses.asdict(precondition))))
    assert again == precondition
    assert hash(again) == hash(precondition)
    assert 0 < again.sigma_min < again.sigma_max < math.inf


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_factors_keep_the_dtype_and_the_shape(precondition, dtype):
    sigma = torch.tensor([0.1, 1.0, 5.0], dtype=dtype)
    for factor in (*precondition.scales(sigma), precondition.smooth_c_noise(sigma)):
        assert factor.shape == (3,)
        assert factor.dtype == dtype


@given(st.sampled_from(CONTINUOUS), levels)
def test_smooth_c_noise_has_the_derivative_that_a_difference_shows(precondition, sigma):
    sigma = sigma.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        precondition.smooth_c_noise, sigma, eps=1e-6 * sigma.item(), rtol=1e-3, atol=1e-6
    )


@given(st.sampled_from(CONTINUOUS), levels)
def test_smooth_c_noise_is_what_the_network_sees(precondition, sigma):
    """Exactly, except for networks that see the nearest whole index."""
    seen, smooth = precondition.scales(sigma).c_noise, precondition.smooth_c_noise(sigma)
    if not isinstance(precondition, IDDPMPrecondition | DiscreteVEPrecondition):
        torch.testing.assert_close(smooth, seen, rtol=0, atol=0)
    elif precondition.sigma_min <= sigma.item() <= precondition.sigma_max:
        assert (smooth - seen).abs().item() <= 0.6


# --- what each network answers


@given(levels)
def test_edm_keeps_the_variance_at_one(sigma):
    """Unit variance of the input and of the training target (Karras et al. 2022, appendix B.6)."""
    c_skip, c_out, c_in, _ = EDMPrecondition().scales(sigma)
    variance = 0.5**2
    torch.testing.assert_close(c_in**2 * (variance + sigma**2), torch.ones(1).double())
    target = ((1 - c_skip) ** 2 * variance + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target, torch.ones(1).double())


def test_edm_on_timesteps_is_edm_but_for_c_noise():
    sigma = torch.logspace(-2, 1, 7, dtype=torch.float64)
    ours, edm = TimestepEDMPrecondition().scales(sigma), EDMPrecondition().scales(sigma)
    for factor in ("c_skip", "c_out", "c_in"):
        torch.testing.assert_close(getattr(ours, factor), getattr(edm, factor))
    torch.testing.assert_close(ours.c_noise, 1000 * edm.c_noise)


def noise(x0, eps, sigma):
    return eps


def unit(sigma):
    return (1 + sigma**2).sqrt()


@pytest.mark.parametrize(
    ("precondition", "answer", "size"),
    [
        (VPPrecondition(), noise, unit),
        (IDDPMPrecondition(), noise, unit),
        (VEPrecondition(), lambda x0, eps, sigma: -eps, torch.ones_like),
        (discrete("epsilon"), noise, unit),
        (discrete("v_prediction"), lambda x0, eps, s: (eps - s * x0) / unit(s), unit),
        (discrete("sample"), lambda x0, eps, sigma: x0, unit),
        (FlowPrecondition(0.01, 9.0), lambda x0, eps, sigma: eps - x0, lambda sigma: 1 + sigma),
    ],
)
def test_a_perfect_network_gives_the_clean_sample(precondition, answer, size):
    """`x = x0 + sigma eps`; the network sees x over `size` and answers what it was trained to."""
    x0, eps = torch.randn(2, 50, dtype=torch.float64)
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    c_skip, c_out, c_in, _ = precondition.scales(sigma)
    x = x0 + sigma * eps
    torch.testing.assert_close(c_in * x, x / size(sigma))
    torch.testing.assert_close(c_skip * x + c_out * answer(x0, eps, sigma), x0)


def test_the_flow_network_receives_its_time():
    s = torch.arange(1, 1000, dtype=torch.float64) / 1000
    told = FlowPrecondition(0.01, 9.0).scales(s / (1 - s)).c_noise
    torch.testing.assert_close(told, 1000 * s)


# --- numbered timesteps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_discrete_sigma_is_its_timestep(dtype):
    timesteps = discrete().scales(SIGMAS.to(dtype)).c_noise
    assert torch.equal(timesteps, torch.arange(1000, dtype=dtype))


def test_between_two_timesteps_it_is_linear_in_ln_sigma_and_outside_the_nearest():
    middle = (SIGMAS[1:] * SIGMAS[:-1]).sqrt()
    torch.testing.assert_close(discrete().scales(middle).c_noise, torch.arange(999).double() + 0.5)
    assert discrete().scales(torch.tensor([1e-6, 1e6])).c_noise.tolist() == [0, 999]


def test_smooth_c_noise_is_whole_at_the_discrete_sigmas_monotone_and_near_the_teachers():
    between = torch.logspace(SIGMAS[0].log10(), SIGMAS[-1].log10(), 20_000, dtype=torch.float64)
    torch.testing.assert_close(discrete().smooth_c_noise(SIGMAS), torch.arange(1000).double())
    smooth = discrete().smooth_c_noise(between)
    assert (smooth.diff() > 0).all()
    assert (smooth - discrete().scales(between).c_noise).abs().max() < 0.1


def test_smooth_c_noise_has_no_kinks():
    def rate(sigma):
        sigma = sigma.clone().requires_grad_()
        return torch.autograd.grad(discrete().smooth_c_noise(sigma).sum(), sigma)[0] * sigma

    inner = SIGMAS[1:-1]
    torch.testing.assert_close(
        rate(inner * (1 - 1e-9)), rate(inner * (1 + 1e-9)), rtol=1e-5, atol=0
    )
    middle = (SIGMAS[1:] * SIGMAS[:-1]).sqrt().requires_grad_()
    assert torch.autograd.gradcheck(discrete().smooth_c_noise, middle[::97], eps=1e-7)


@pytest.mark.parametrize("table", [[0.9], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.5, 0.0]])
def test_a_table_that_is_not_a_schedule_is_refused(table):
    with pytest.raises(PidistillError, match="alphas_cumprod"):
        DiscreteVPPrecondition(table, 0.1, 1.0)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(PidistillError, match="'score'"):
        discrete("score")
