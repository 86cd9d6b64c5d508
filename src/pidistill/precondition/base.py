"""The contract of a preconditioning (Karras et al. 2022, equation 7 and table 1)."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Scales(NamedTuple):
    """The four factors of a preconditioning at noise levels (b,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def noise_prediction(sigma: Tensor, c_noise: Tensor) -> Scales:
    """The factors of a variance-preserving network that predicts noise: `D = x - sigma F`."""
    return Scales(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise)


class Precondition(Protocol):
    """`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`; the factors depend on `sigma` alone."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level for sampling."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level for sampling."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,), each of shape (b,)."""
        ...

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`c_noise` as a differentiable function of `sigma`, for students between the levels."""
        ...
