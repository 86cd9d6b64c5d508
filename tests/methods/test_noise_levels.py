"""How PID draws its noise levels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm

from pidistill import load_teacher
from pidistill.methods.noise_levels import DRAWS
from pidistill.noise import Draws
from pidistill.schedule import karras_sigmas


def test_published_noise_levels_are_nodes_all_equally_likely(mlp_teacher):
    uniform = Draws(0, 0, 20_000).uniform("a")
    nodes = karras_sigmas(10, mlp_teacher.sigma_min, mlp_teacher.sigma_max)
    drawn = DRAWS["nodes"](uniform, mlp_teacher, 10)
    counts = (drawn[:, None] == nodes).sum(0)
    assert counts.sum() == 20_000
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()


@pytest.mark.parametrize(("draw", "spread"), [("rho", lambda s: s ** (1 / 7)), ("log", torch.log)])
def test_continuous_noise_levels_are_uniform_in_their_scale(mlp_teacher, draw, spread):
    uniform = Draws(0, 0, 20_000).uniform("a")
    drawn = DRAWS[draw](uniform, mlp_teacher, 250)
    ends = torch.tensor([mlp_teacher.sigma_min, mlp_teacher.sigma_max], dtype=torch.float64)
    low, high = spread(ends)
    position = ((spread(drawn) - low) / (high - low)).sort().values
    assert position[0] >= -1e-12
    assert position[-1] <= 1 + 1e-12
    assert (position - (torch.arange(20_000) + 0.5) / 20_000).abs().max() < 2.7 / 20_000**0.5


@given(st.floats(0, 1, exclude_max=True), st.sampled_from(sorted(DRAWS)))
def test_every_noise_level_is_in_the_teachers_range(uniform, draw):
    teacher = load_teacher("mixture:gaussian")
    sigma = DRAWS[draw](torch.tensor([uniform], dtype=torch.float64), teacher, 250)
    assert teacher.sigma_min <= sigma.item() <= teacher.sigma_max


def test_log_normal_noise_levels_are_edms_cut_to_the_range(mlp_teacher):
    sigma = DRAWS["log-normal"](Draws(0, 0, 20_000).uniform("a"), mlp_teacher, 250)
    low, high = ((math.log(end) + 1.2) / 1.2 for end in (0.002, 80.0))
    expected = truncnorm(low, high, loc=-1.2, scale=1.2)
    assert kstest(sigma.log().numpy(), expected.cdf).pvalue > 0.01


def test_levels_uniform_in_theta(mlp_teacher):
    sigma = DRAWS["theta"](Draws(0, 0, 20_000).uniform("a"), mlp_teacher, 250)
    theta = torch.atan(sigma / mlp_teacher.sigma_data)
    low, high = (math.atan(end / mlp_teacher.sigma_data) for end in (0.002, 80.0))
    assert kstest((theta - low) / (high - low), "uniform").pvalue > 0.01


def test_log_theta_takes_half_of_either():
    teacher = load_teacher("mixture:gaussian")
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    sigma = DRAWS["log-theta"](uniform, teacher, 250)
    first, last = uniform < 0.5, uniform >= 0.5
    assert torch.equal(sigma[first], DRAWS["theta"](2 * uniform[first], teacher, 250))
    assert torch.equal(sigma[last], DRAWS["log"](2 * uniform[last] - 1, teacher, 250))
