"""Noise levels: the rho-grid of EDM and the log-odds time of the PID equation.

`sigma` is always a noise level in EDM coordinates, where a noisy sample is `x0 + sigma * eps`.
"""

import math

import torch
from torch import Tensor


def karras_sigmas(
    num_nodes: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""The `rho`-grid of Karras et al. 2022, equation 5, from `sigma_max` down to `sigma_min`.

    $\sigma_i = (\sigma_{max}^{1/\rho}
      + \frac{i}{N-1} (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}))^\rho$

    Returns a tensor of shape `(num_nodes,)`, strictly decreasing, whose ends are exact.

    Raises `ValueError` when there are fewer than two nodes or the levels are out of order.
    """
    if num_nodes < 2:
        raise ValueError(f"num_nodes is {num_nodes}; a noise grid needs at least 2 nodes")
    require_sigma_range(sigma_min, sigma_max)
    fraction = torch.arange(num_nodes, dtype=torch.float64) / (num_nodes - 1)
    sigmas = sigma_at(fraction, sigma_min, sigma_max, rho)
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas.to(dtype)


def sigma_at(fraction: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The `rho`-grid as a continuous function: 0 is `sigma_max`, 1 is `sigma_min`.

    `fraction` has any shape with values in [0, 1]; the result has its shape and dtype.
    """
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (first + fraction * (last - first)) ** rho


def log_odds(sigma: Tensor, sigma_max: float) -> Tensor:
    r"""Log-odds time $\tau = \ln(\sigma / (\sigma_{max} - \sigma))$, infinite at `sigma_max`."""
    return torch.log(sigma) - torch.log(sigma_max - sigma)


def from_log_odds(tau: Tensor, sigma_max: float) -> Tensor:
    """The inverse of `log_odds`: the noise level at log-odds time `tau`."""
    return sigma_max * torch.sigmoid(tau)


def require_sigma_range(sigma_min: float, sigma_max: float) -> None:
    """Raise `ValueError` unless `0 < sigma_min < sigma_max` and both are finite."""
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; "
            "expected 0 < sigma_min < sigma_max, both finite"
        )
