"""Preconditionings of a raw network, as a table (Karras et al. 2022, table 1).

`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`; every factor is a function of `sigma` alone.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Scales(NamedTuple):
    """The four factors of a preconditioning at noise levels (b,): Karras et al. 2022, eq. 7."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Precondition(Protocol):
    """A preconditioning `D = c_skip x + c_out F(c_in x, c_noise)`, as a table of four functions."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level to sample at."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level to sample at."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,), each of shape (b,)."""
        ...

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`c_noise` as a differentiable function of `sigma`, for a student that lives between."""
        ...
