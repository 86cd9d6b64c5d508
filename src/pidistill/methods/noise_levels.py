"""Distributions of PID's training noise levels."""

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.schedule import karras_sigmas, sigma_at

Draw = Callable[[Tensor, Denoiser, int], Tensor]
"""Maps uniform numbers in [0, 1), shape (b,), float64, to noise levels of the same shape, given the
teacher and the number of nodes of the rho-7 grid."""


def draw_nodes(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """Uniform over the nodes of the rho-7 grid, as published."""
    nodes = karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max, device=uniform.device)
    return nodes[(uniform * num_nodes).long()]


def draw_rho(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """Uniform in sigma^(1/7), the continuous form of the rho-7 grid."""
    return sigma_at(uniform, teacher.sigma_min, teacher.sigma_max)


def draw_log(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """Uniform in ln(sigma)."""
    return teacher.sigma_max * (teacher.sigma_min / teacher.sigma_max) ** uniform


LOG_NORMAL_MEDIAN = math.exp(-1.2) / 0.5
"""Median of EDM's training noise levels, in units of its `sigma_data`."""
LOG_NORMAL_STD = 1.2
"""Standard deviation of their logarithm (Karras et al. 2022, table 1)."""


def draw_log_normal(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """EDM's log-normal training distribution, truncated to the teacher's range.

    The median scales with the teacher's `sigma_data`. Only about 2 in 100,000 levels exceed half of
    EDM's `sigma_max`, so the start of the trajectory is learnt last.
    """
    median = LOG_NORMAL_MEDIAN * teacher.sigma_data
    first, last = (
        statistics.NormalDist().cdf(math.log(end / median) / LOG_NORMAL_STD)
        for end in (teacher.sigma_max, teacher.sigma_min)
    )
    normal = torch.special.ndtri(first + uniform * (last - first))
    sigma = median * (LOG_NORMAL_STD * normal).exp()
    return sigma.clamp(teacher.sigma_min, teacher.sigma_max)


def draw_theta(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """Uniform in theta = arctan(sigma / sigma_data): most levels are near `sigma_data`."""
    first, last = (
        math.atan(end / teacher.sigma_data) for end in (teacher.sigma_max, teacher.sigma_min)
    )
    sigma = teacher.sigma_data * torch.tan(first + uniform * (last - first))
    return sigma.clamp(teacher.sigma_min, teacher.sigma_max)


def draw_log_theta(uniform: Tensor, teacher: Denoiser, num_nodes: int) -> Tensor:
    """Half of the levels uniform in ln(sigma), half in theta: no level is rare."""
    twice = 2 * uniform
    of_theta = draw_theta(twice.clamp(max=1), teacher, num_nodes)
    return torch.where(twice < 1, of_theta, draw_log((twice - 1).clamp(min=0), teacher, num_nodes))


DRAWS: dict[str, Draw] = {
    "nodes": draw_nodes,
    "rho": draw_rho,
    "log": draw_log,
    "log-normal": draw_log_normal,
    "theta": draw_theta,
    "log-theta": draw_log_theta,
}
