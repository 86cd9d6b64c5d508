"""Noise grids and the maps between noise levels and times, over their whole range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.schedule import (
    iddpm_index,
    iddpm_sigmas,
    karras_sigmas,
    require_sigma_range,
    sigma_at,
    vp_sigma,
    vp_time,
)

sigma_mins = st.floats(1e-4, 1.0)
ratios = st.floats(1.5, 1e6)
rhos = st.floats(1.0, 20.0)


@given(st.integers(2, 1000), sigma_mins, ratios, rhos)
def test_the_grid_decreases_strictly_between_its_exact_ends(num_nodes, sigma_min, ratio, rho):
    sigmas = karras_sigmas(num_nodes, sigma_min, sigma_min * ratio, rho)
    assert sigmas.shape == (num_nodes,)
    assert sigmas[0].item() == sigma_min * ratio
    assert sigmas[-1].item() == sigma_min
    assert (sigmas.diff() < 0).all()


@given(st.integers(2, 300), sigma_mins, ratios, rhos)
def test_the_grid_is_even_in_the_root_of_sigma(num_nodes, sigma_min, ratio, rho):
    roots = karras_sigmas(num_nodes, sigma_min, sigma_min * ratio, rho) ** (1 / rho)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(num_nodes - 1))


def test_the_grid_comes_in_the_dtype_that_is_asked_for():
    sigmas = karras_sigmas(18, 0.002, 80.0, dtype=torch.float32)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, karras_sigmas(18, 0.002, 80.0).float())


def test_a_grid_needs_two_nodes():
    with pytest.raises(PidistillError, match="num_nodes is 1"):
        karras_sigmas(1, 0.002, 80.0)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"),
    [(0.0, 80.0), (-1.0, 80.0), (80.0, 0.002), (1.0, 1.0), (1.0, math.inf), (math.nan, 80.0)],
)
def test_a_range_out_of_order_is_refused(sigma_min, sigma_max):
    with pytest.raises(PidistillError, match="0 < sigma_min < sigma_max"):
        require_sigma_range(sigma_min, sigma_max)


@given(st.integers(2, 300))
def test_the_continuous_grid_meets_the_nodes(num_nodes):
    fraction = torch.linspace(0, 1, num_nodes, dtype=torch.float64)
    torch.testing.assert_close(
        sigma_at(fraction, 0.002, 80.0), karras_sigmas(num_nodes, 0.002, 80.0)
    )


@given(st.floats(1e-4, 1.0), st.floats(1.0, 30.0), st.floats(1e-3, 1.0))
def test_vp_time_inverts_the_noise_level(t, beta_d, beta_min):
    sigma = torch.tensor([vp_sigma(t, beta_d, beta_min)], dtype=torch.float64)
    assert vp_time(sigma, beta_d, beta_min).item() == pytest.approx(t, rel=1e-6)


def test_the_levels_of_improved_ddpm_fall_to_zero():
    sigmas = iddpm_sigmas(1000, 0.001, 0.008)
    assert sigmas.shape == (1001,)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@given(st.integers(10, 2000))
def test_the_index_of_improved_ddpm_is_whole_at_its_levels(num_steps):
    sigmas = iddpm_sigmas(num_steps, 0.001, 0.008)[1:-1]
    torch.testing.assert_close(
        iddpm_index(sigmas, num_steps, 0.008),
        torch.arange(1, num_steps, dtype=torch.float64),
        rtol=1e-6,
        atol=1e-6,
    )
