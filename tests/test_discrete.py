"""Preconditionings of networks on numbered timesteps."""

import dataclasses
import json

import pytest
import torch

from pidistill.errors import PidistillError
from pidistill.precondition import PRECONDITIONS, EDMPrecondition
from pidistill.precondition.discrete import (
    DiscreteVPPrecondition,
    FlowPrecondition,
    TimestepEDMPrecondition,
    discrete_sigmas,
)

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SIGMAS = discrete_sigmas(ALPHAS_CUMPROD)


def vp(prediction_type="epsilon"):
    return DiscreteVPPrecondition(
        ALPHAS_CUMPROD.tolist(), SIGMAS[0].item(), SIGMAS[-1].item(), prediction_type
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_discrete_sigma_is_its_timestep(dtype):
    timesteps = vp().scales(SIGMAS.to(dtype)).c_noise
    assert timesteps.dtype == dtype
    assert torch.equal(timesteps, torch.arange(1000, dtype=dtype))


def test_between_two_timesteps_it_is_linear_in_ln_sigma():
    middle = (SIGMAS[1:] * SIGMAS[:-1]).sqrt()
    torch.testing.assert_close(vp().scales(middle).c_noise, torch.arange(999).double() + 0.5)


def test_outside_of_the_table_it_is_the_last_timestep():
    timesteps = vp().scales(torch.tensor([1e-6, 1e6])).c_noise
    assert timesteps.tolist() == [0, 999]


def test_smooth_c_noise_is_whole_at_the_discrete_sigmas_monotone_and_near_the_teachers():
    between = torch.logspace(SIGMAS[0].log10(), SIGMAS[-1].log10(), 20_000, dtype=torch.float64)
    torch.testing.assert_close(vp().smooth_c_noise(SIGMAS), torch.arange(1000).double())
    smooth = vp().smooth_c_noise(between)
    assert (smooth.diff() > 0).all()
    assert (smooth - vp().scales(between).c_noise).abs().max() < 0.1


def test_smooth_c_noise_has_no_kinks():
    def rate(sigma):
        sigma = sigma.clone().requires_grad_()
        return torch.autograd.grad(vp().smooth_c_noise(sigma).sum(), sigma)[0] * sigma

    inner = SIGMAS[1:-1]
    torch.testing.assert_close(
        rate(inner * (1 - 1e-9)), rate(inner * (1 + 1e-9)), rtol=1e-5, atol=0
    )
    middle = (SIGMAS[1:] * SIGMAS[:-1]).sqrt().requires_grad_()
    assert torch.autograd.gradcheck(vp().smooth_c_noise, middle[::97], eps=1e-7)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_vp_network_gives_the_clean_sample(prediction_type):
    """`x = x0 + sigma eps`; the network answers exactly what it was trained to answer."""
    x0, eps = torch.randn(2, 1000, dtype=torch.float64)
    a, b = ALPHAS_CUMPROD.sqrt(), (1 - ALPHAS_CUMPROD).sqrt()
    answer = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}[prediction_type]
    scales = vp(prediction_type).scales(SIGMAS)
    x = x0 + SIGMAS * eps
    torch.testing.assert_close(scales.c_in * x, a * x0 + b * eps)
    torch.testing.assert_close(scales.c_skip * x + scales.c_out * answer, x0)


def test_a_perfect_flow_network_gives_the_clean_sample():
    x0, eps = torch.randn(2, 999, dtype=torch.float64)
    s = torch.arange(1, 1000, dtype=torch.float64) / 1000
    sigma = s / (1 - s)
    scales = FlowPrecondition(sigma[0].item(), sigma[-1].item()).scales(sigma)
    x = x0 + sigma * eps
    torch.testing.assert_close(scales.c_in * x, (1 - s) * x0 + s * eps)
    torch.testing.assert_close(scales.c_skip * x + scales.c_out * (eps - x0), x0)
    torch.testing.assert_close(scales.c_noise, 1000 * s)


def test_edm_on_timesteps_is_edm_but_for_c_noise():
    sigma = torch.logspace(-2, 1, 7, dtype=torch.float64)
    ours, edm = TimestepEDMPrecondition().scales(sigma), EDMPrecondition().scales(sigma)
    for factor in ("c_skip", "c_out", "c_in"):
        torch.testing.assert_close(getattr(ours, factor), getattr(edm, factor))
    torch.testing.assert_close(ours.c_noise, 1000 * edm.c_noise)


@pytest.mark.parametrize(
    "precondition", [vp("sample"), FlowPrecondition(0.01, 9.0), TimestepEDMPrecondition()]
)
def test_it_survives_json(precondition):
    name = next(name for name, cls in PRECONDITIONS.items() if type(precondition) is cls)
    config = json.loads(json.dumps(dataclasses.asdict(precondition)))
    again = PRECONDITIONS[name](**config)
    assert again == precondition
    assert hash(again) == hash(precondition)


@pytest.mark.parametrize("table", [[0.9], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.5, 0.0]])
def test_a_table_that_is_no_schedule_is_refused(table):
    with pytest.raises(PidistillError, match="alphas_cumprod has"):
        DiscreteVPPrecondition(table, 0.1, 1.0)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(PidistillError, match="'score'; expected one of epsilon"):
        vp("score")
