"""Noise levels: the rho-grid of EDM, and the times of the VP and improved DDPM processes.

`sigma` is always a noise level in EDM coordinates, where a noisy sample is `x0 + sigma * eps`.
"""

import functools
import math

import torch
from torch import Tensor

from pidistill.errors import PidistillError


def karras_sigmas(
    num_nodes: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    r"""The `rho`-grid of Karras et al. 2022, equation 5, from `sigma_max` down to `sigma_min`.

    $\sigma_i = (\sigma_{max}^{1/\rho}
      + \frac{i}{N-1} (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}))^\rho$

    Returns shape `(num_nodes,)`, strictly decreasing, with exact endpoints; `finest_dtype` unless
    `dtype` is set.

    Raises `PidistillError` if there are fewer than two nodes or the levels are out of order.
    """
    if num_nodes < 2:
        raise PidistillError(f"num_nodes is {num_nodes}; a noise grid needs at least 2 nodes")
    require_sigma_range(sigma_min, sigma_max)
    finest = torch.float64 if device is None else finest_dtype(device)
    fraction = torch.arange(num_nodes, dtype=finest, device=device) / (num_nodes - 1)
    sigmas = sigma_at(fraction, sigma_min, sigma_max, rho)
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas if dtype is None else sigmas.to(dtype)


def sigma_at(fraction: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The `rho`-grid as a continuous function: 0 maps to `sigma_max`, 1 to `sigma_min`.

    `fraction` has any shape and values in [0, 1]; the result has its shape and dtype.
    """
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (first + fraction * (last - first)) ** rho


def finest_dtype(device: torch.device) -> torch.dtype:
    """float64, in which noise levels are computed, or float32 on a device that lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def constant_sigma(sigma: float, x: Tensor) -> Tensor:
    """One noise level for all of `x` (b, ...), on its device: shape (b,), in `finest_dtype`."""
    return torch.full((len(x),), sigma, dtype=finest_dtype(x.device), device=x.device)


def require_sigma_range(sigma_min: float, sigma_max: float) -> None:
    """Raise `PidistillError` unless `0 < sigma_min < sigma_max` and both are finite."""
    if not (0 < sigma_min < sigma_max < math.inf):
        raise PidistillError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; "
            "expected 0 < sigma_min < sigma_max, both finite"
        )


def vp_sigma(t: float, beta_d: float, beta_min: float) -> float:
    r"""Noise level of the variance-preserving SDE at time `t`: Karras et al. 2022, table 1.

    $\sigma(t) = \sqrt{\exp(\beta_d t^2 / 2 + \beta_{min} t) - 1}$
    """
    return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))


def vp_time(sigma: Tensor, beta_d: float, beta_min: float) -> Tensor:
    r"""The inverse of `vp_sigma`, for `sigma` of any shape.

    $t(\sigma) = (\sqrt{\beta_{min}^2 + 2 \beta_d \ln(1 + \sigma^2)} - \beta_{min}) / \beta_d$

    The operations follow the order of the formula: the network's highest time frequency depends on
    the last digits of the time, so matching the original needs the same rounding.
    """
    log_variance = (1 + sigma**2).log()
    return ((beta_min**2 + 2 * beta_d * log_variance).sqrt() - beta_min) / beta_d


@functools.lru_cache(maxsize=32)
def iddpm_sigmas(
    num_steps: int, c_1: float, c_2: float, device: torch.device | None = None
) -> Tensor:
    r"""The noise levels `u_0 > ... > u_M = 0` of improved DDPM: Karras et al. 2022, table 1.

    $u_{j-1} = \sqrt{(u_j^2 + 1) / \max(\bar\alpha_{j-1} / \bar\alpha_j, C_1) - 1}$ with
    $\bar\alpha_j = \sin^2(\frac{\pi}{2} \frac{j}{M (C_2 + 1)})$

    Returns shape (num_steps + 1,), float64. The tensor is shared: do not write to it.
    """
    alpha_bar = [
        math.sin(math.pi / 2 * j / num_steps / (c_2 + 1)) ** 2 for j in range(num_steps + 1)
    ]
    u = [0.0] * (num_steps + 1)
    for j in range(num_steps, 0, -1):
        ratio = max(alpha_bar[j - 1] / alpha_bar[j], c_1)
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / ratio - 1)
    return torch.tensor(u, dtype=torch.float64, device=device)


def iddpm_index(sigma: Tensor, num_steps: int, c_2: float) -> Tensor:
    r"""The index `j` of improved DDPM as a smooth function of `sigma`, in closed form.

    Without the clip, the recursion of `iddpm_sigmas` telescopes to
    $u_j^2 + 1 = \bar\alpha_M / \bar\alpha_j$, solved here for `j`. The function interpolates the
    nodes `u_1 ... u_M`, but not `u_0`, which is clipped for any `c_1` up to 1/4.
    """
    half_turn = math.pi / 2 / (c_2 + 1)
    sine, cosine = math.sin(half_turn), math.cos(half_turn)
    angle = torch.atan2(torch.full_like(sigma, sine), (sigma**2 + cosine**2).sqrt())
    return angle / half_turn * num_steps
