"""Preconditionings of ScoreSDE's networks beyond those of EDM's table (Song et al. 2021)."""

import dataclasses
import math

import torch
from torch import Tensor

from pidistill.precondition.base import Scales
from pidistill.schedule import vp_sigma, vp_time


@dataclasses.dataclass(frozen=True)
class DiscreteVEPrecondition:
    r"""A variance-exploding network on `num_levels` noise levels, evenly spaced in $\ln \sigma$.

    The network predicts the negative noise from an unscaled input. It sees the index of a level,
    from 0 at the highest; between levels that of the nearest, and its output is divided by that
    level, as in the original's score function.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    num_levels: int = 1000
    sigma_data: float = 0.5

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        one, last = torch.ones_like(sigma), self.num_levels - 1
        index = self.smooth_c_noise(sigma).round().clamp(0, last)
        share = index / last
        level = self.sigma_max * (self.sigma_min / self.sigma_max) ** share
        return Scales(c_skip=one, c_out=sigma**2 / level, c_in=one, c_noise=index)

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """The index as a linear function of ln(sigma)."""
        span = math.log(self.sigma_max / self.sigma_min)
        return (self.num_levels - 1) * (math.log(self.sigma_max) - sigma.log()) / span


@dataclasses.dataclass(frozen=True)
class SubVPPrecondition:
    r"""Networks trained on the sub-VP SDE.

    At time `t` its marginal has the mean $\alpha x_0$ of the VP SDE and the standard deviation
    $1 - \alpha^2$, so that $\sigma = (1 - \alpha^2) / \alpha$ and
    $\alpha = 2 / (\sigma + \sqrt{\sigma^2 + 4})$. The network predicts noise and sees the time,
    scaled to `0 .. num_times - 1`.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    num_times: int = 1000
    epsilon_t: float = 1e-3
    sigma_data: float = 0.5

    @property
    def sigma_min(self) -> float:
        """The noise level at time `epsilon_t`, where the original's sampler stops."""
        return self._sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """The noise level at time 1."""
        return self._sigma(1.0)

    def _sigma(self, t: float) -> float:
        vp = vp_sigma(t, self.beta_d, self.beta_min)  # alpha = 1 / sqrt(1 + vp^2)
        return vp**2 / math.sqrt(1 + vp**2)

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        c_noise = self.smooth_c_noise(sigma)
        return Scales(torch.ones_like(sigma), -sigma, self._alpha(sigma), c_noise)

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`(num_times - 1) t(sigma)`."""
        vp = (sigma / self._alpha(sigma)).sqrt()
        return (self.num_times - 1) * vp_time(vp, self.beta_d, self.beta_min)

    def _alpha(self, sigma: Tensor) -> Tensor:
        return 2 / (sigma + (sigma**2 + 4).sqrt())
