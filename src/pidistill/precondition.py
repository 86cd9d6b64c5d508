"""Preconditionings of a raw network, as a table (Karras et al. 2022, table 1).

`D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`; every factor is a function of `sigma` alone.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class EDMPrecondition:
    """The preconditioning of Karras et al. 2022 (table 1, last column)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        total = sigma**2 + self.sigma_data**2
        return Scales(
            c_skip=self.sigma_data**2 / total,
            c_out=sigma * self.sigma_data * total.rsqrt(),
            c_in=total.rsqrt(),
            c_noise=self.smooth_c_noise(sigma),
        )

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`ln(sigma) / 4`."""
        return sigma.log() / 4


PRECONDITIONS: dict[str, type[Precondition]] = {"edm": EDMPrecondition}

import pidistill.discrete  # noqa: E402, F401  it registers its own, and needs `Scales` above
