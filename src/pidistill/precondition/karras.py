"""The four preconditionings of Karras et al. 2022, table 1."""

import dataclasses

import torch
from torch import Tensor

from pidistill.precondition.base import Scales, noise_prediction
from pidistill.schedule import iddpm_index, iddpm_sigmas, vp_sigma, vp_time


@dataclasses.dataclass(frozen=True)
class EDMPrecondition:
    """The preconditioning of Karras et al. 2022 (table 1, last column)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        return Scales(c_skip, c_out, total.rsqrt(), self.smooth_c_noise(sigma))

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`ln(sigma) / 4`."""
        return sigma.log() / 4


@dataclasses.dataclass(frozen=True)
class VPPrecondition:
    """Networks trained on the variance-preserving SDE (table 1, first column).

    The network predicts noise and sees the time `t` of the SDE, scaled to `0 .. num_times - 1`.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    num_times: int = 1000
    epsilon_t: float = 1e-5
    sigma_data: float = 0.5

    @property
    def sigma_min(self) -> float:
        """The noise level at time `epsilon_t`."""
        return vp_sigma(self.epsilon_t, self.beta_d, self.beta_min)

    @property
    def sigma_max(self) -> float:
        """The noise level at time 1."""
        return vp_sigma(1.0, self.beta_d, self.beta_min)

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        return noise_prediction(sigma, self.smooth_c_noise(sigma))

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`(num_times - 1) t(sigma)`."""
        return (self.num_times - 1) * vp_time(sigma, self.beta_d, self.beta_min)


@dataclasses.dataclass(frozen=True)
class VEPrecondition:
    """Networks trained on the variance-exploding SDE (table 1, second column).

    The network predicts the negative noise from an unscaled input.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    sigma_data: float = 0.5

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        one = torch.ones_like(sigma)
        return Scales(c_skip=one, c_out=sigma, c_in=one, c_noise=self.smooth_c_noise(sigma))

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`ln(sigma / 2)`."""
        return (sigma / 2).log()


@dataclasses.dataclass(frozen=True)
class IDDPMPrecondition:
    """Networks of improved DDPM, trained on discrete noise levels (table 1, third column).

    The network predicts noise, and a variance that is dropped; it sees the index of the level
    `u_j` nearest to `sigma`. The lowest level is `u_{M-1}`. At the highest, `u_0` above 20,000,
    nothing of the image remains and `x - sigma F` suffers cancellation, so sampling starts at
    `highest`, 80 as in EDM's sampler, or at `u_0` if that is lower.
    """

    c_1: float = 0.001
    c_2: float = 0.008
    num_steps: int = 1000
    highest: float = 80.0
    sigma_data: float = 0.5

    @property
    def sigma_min(self) -> float:
        """The lowest noise level above zero."""
        return iddpm_sigmas(self.num_steps, self.c_1, self.c_2)[-2].item()

    @property
    def sigma_max(self) -> float:
        """`highest`, or the highest training noise level if that is lower."""
        return min(self.highest, iddpm_sigmas(self.num_steps, self.c_1, self.c_2)[0].item())

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        nodes = iddpm_sigmas(self.num_steps, self.c_1, self.c_2, sigma.device)
        nearest = (sigma[:, None] - nodes).abs().argmin(dim=1)
        return noise_prediction(sigma, (self.num_steps - 1 - nearest).to(sigma.dtype))

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`M - 1 - j(sigma)`, smooth between the training noise levels."""
        return self.num_steps - 1 - iddpm_index(sigma, self.num_steps, self.c_2)
