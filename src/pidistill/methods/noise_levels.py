r"""The noise levels that PID trains on: how they are drawn, and how their losses are weighted."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.schedule import karras_sigmas, sigma_at


class DrawSettings(Protocol):
    """What a draw may depend on beside the teacher."""

    @property
    def num_nodes(self) -> int:
        """Nodes of the rho-7 grid."""


Draw = Callable[[Tensor, DrawSettings, Denoiser], Tensor]
"""From uniform numbers in [0, 1), shape (b,), float64, to noise levels of the same shape."""


def draw_nodes(uniform: Tensor, settings: DrawSettings, teacher: Denoiser) -> Tensor:
    """A node of the rho-7 grid, all equally likely: the published draw."""
    nodes = karras_sigmas(settings.num_nodes, teacher.sigma_min, teacher.sigma_max)
    return nodes[(uniform * settings.num_nodes).long()]


def draw_rho(uniform: Tensor, settings: DrawSettings, teacher: Denoiser) -> Tensor:
    """Uniform in sigma^(1/7), the continuous form of the rho-7 grid."""
    return sigma_at(uniform, teacher.sigma_min, teacher.sigma_max)


def draw_log(uniform: Tensor, settings: DrawSettings, teacher: Denoiser) -> Tensor:
    """Uniform in ln(sigma)."""
    return teacher.sigma_max * (teacher.sigma_min / teacher.sigma_max) ** uniform


LOG_NORMAL_MEDIAN = math.exp(-1.2) / 0.5
"""Median of EDM's noise levels in training, in units of its `sigma_data`."""
LOG_NORMAL_STD = 1.2
"""Standard deviation of their logarithm (Karras et al. 2022, table 1)."""


def draw_log_normal(uniform: Tensor, settings: DrawSettings, teacher: Denoiser) -> Tensor:
    """Log-normal as the noise levels that EDM trains its teachers on, cut to the teacher's range.

    The median moves with the teacher's `sigma_data`. About 2 in 100,000 are above half of EDM's
    `sigma_max`, where the trajectory begins: expect that part to be learnt last.
    """
    median = LOG_NORMAL_MEDIAN * teacher.sigma_data
    ends = torch.tensor([teacher.sigma_max, teacher.sigma_min], dtype=uniform.dtype)
    first, last = torch.special.ndtr((ends / median).log() / LOG_NORMAL_STD)
    normal = torch.special.ndtri(first + uniform * (last - first))
    sigma = median * (LOG_NORMAL_STD * normal).exp()
    return sigma.clamp(teacher.sigma_min, teacher.sigma_max)


DRAWS: dict[str, Draw] = {
    "nodes": draw_nodes,
    "rho": draw_rho,
    "log": draw_log,
    "log-normal": draw_log_normal,
}


def uniform_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """The same for all: the published weight."""
    return torch.ones_like(sigma)


def low_noise_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    r"""$\frac{\sigma_{data}}{\sigma + \sigma_{data}}$: 1/sigma above `sigma_data`, level below."""
    return sigma_data / (sigma + sigma_data)


def high_noise_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    r"""$\frac{\sigma}{\sigma + \sigma_{data}}$: sigma below `sigma_data`, level above."""
    return sigma / (sigma + sigma_data)


Weight = Callable[[Tensor, float], Tensor]
"""From noise levels (b,) and `sigma_data` to weights (b,), up to a constant factor."""

WEIGHTS: dict[str, Weight] = {
    "uniform": uniform_weight,
    "low-noise": low_noise_weight,
    "high-noise": high_noise_weight,
}


def mean_weight(weight: Weight, draw: Draw, settings: DrawSettings, teacher: Denoiser) -> float:
    """The mean of a weight over a draw, by the midpoint rule; that of the uniform one is exact."""
    num = 10_000
    midpoints = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return weight(draw(midpoints, settings, teacher), teacher.sigma_data).mean().item()
