r"""Preconditionings of networks trained on discrete timesteps, in EDM coordinates.

With $x = x_0 + \sigma \epsilon$ as everywhere else, a variance-preserving network sees
$x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon = x / \sqrt{1 + \sigma^2}$ with
$\sigma_t^2 = (1 - \bar\alpha_t) / \bar\alpha_t$, and a flow-matching network sees
$x_s = (1 - s) x_0 + s \epsilon = x / (1 + \sigma)$ with $s = \sigma / (1 + \sigma)$.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.precondition.base import Scales, noise_prediction
from pidistill.precondition.karras import EDMPrecondition
from pidistill.schedule import finest_dtype

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

SNAP = 1e-3
"""Timesteps this close to an integer are rounded to it; float32 errors reach about 1e-4."""


def discrete_sigmas(alphas_cumprod: Tensor) -> Tensor:
    r"""Noise levels $\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}$ of a VP schedule."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


@dataclasses.dataclass(frozen=True)
class DiscreteVPPrecondition:
    r"""A variance-preserving network on timesteps `0 .. T-1`, as in DDPM.

    The network predicts the noise (`epsilon`), the velocity
    $v = \sqrt{\bar\alpha} \epsilon - \sqrt{1 - \bar\alpha} x_0$ (`v_prediction`) or $x_0$
    (`sample`). Between two levels, `c_noise` is a fractional timestep.
    """

    alphas_cumprod: Sequence[float] = dataclasses.field(repr=False)
    r"""$\bar\alpha_t$ of the timesteps, strictly decreasing, in (0, 1)."""
    sigma_min: float
    sigma_max: float
    prediction_type: str = "epsilon"
    sigma_data: float = 0.5
    timestep_scale: float = 1.0
    """The network's time input is the timestep times this."""

    def __post_init__(self) -> None:
        """Check the table and store the logarithms of its noise levels."""
        if self.prediction_type not in PREDICTION_TYPES:
            raise PidistillError(
                f"prediction_type is {self.prediction_type!r}; expected one of "
                f"{', '.join(PREDICTION_TYPES)}"
            )
        object.__setattr__(self, "alphas_cumprod", tuple(self.alphas_cumprod))
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if len(table) < 2 or table[0] >= 1 or table[-1] <= 0 or (table.diff() >= 0).any():
            raise PidistillError(
                f"alphas_cumprod has {len(table)} values; expected at least 2, strictly "
                "decreasing and between 0 and 1"
            )
        object.__setattr__(self, "_ln_sigmas", {table.device: discrete_sigmas(table).log()})

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        timestep = self.timestep_scale * self.timestep(sigma)
        if self.prediction_type == "epsilon":
            return noise_prediction(sigma, timestep)
        total = sigma**2 + 1
        if self.prediction_type == "sample":
            c_skip, c_out = torch.zeros_like(sigma), torch.ones_like(sigma)
        else:  # D = sqrt(alpha_bar) x_t - sigma_t F
            c_skip, c_out = 1 / total, -sigma * total.rsqrt()
        return Scales(c_skip, c_out, total.rsqrt(), timestep)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of `sigma` (b,): an integer at discrete levels, linear in ln(sigma) between.

        Outside the table it is the first or the last timestep.
        """
        index, share, _ = self._locate(sigma)
        t = index + share
        nearest = t.round()
        snapped = t + torch.where((t - nearest).abs() < SNAP, nearest - t, 0).detach()
        return snapped.to(sigma.dtype)

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        r"""`timestep_scale` times the timestep, as a monotone C1 function of `sigma`.

        The timestep is an integer at every discrete level.

        Cubic Hermite interpolation in $\ln \sigma$ with slopes
        $dt / d\ln\sigma = 2 / (\ln\sigma_{t+1} - \ln\sigma_{t-1})$ at the nodes: the harmonic mean
        of the slopes on both sides, which preserves monotonicity (Fritsch and Butland 1984).
        """
        index, u, step = self._locate(sigma)
        slope = 1 / torch.gradient(self._ln_sigmas_on(sigma))[0]
        cubic = u**2 * (3 - 2 * u) + step * u * (1 - u) * (
            slope[index] * (1 - u) - slope[index + 1] * u
        )
        return self.timestep_scale * (index + cubic).to(sigma.dtype)

    def _locate(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The timestep below `sigma` (b,), the fraction of the way to the next, and the interval.

        Fraction and interval are in ln(sigma).
        """
        nodes = self._ln_sigmas_on(sigma)
        ln_sigma = sigma.to(nodes.dtype).log().clamp(nodes[0], nodes[-1])
        index = torch.searchsorted(nodes, ln_sigma.detach(), right=True) - 1
        index = index.clamp(0, len(nodes) - 2)
        step = nodes[index + 1] - nodes[index]
        return index, (ln_sigma - nodes[index]) / step, step

    def _ln_sigmas_on(self, sigma: Tensor) -> Tensor:
        """The table of ln(sigma) on the device of `sigma`, in float64 if the device supports it."""
        tables: dict[torch.device, Tensor] = self._ln_sigmas  # type: ignore[attr-defined]
        if sigma.device not in tables:  # copied to a device once, since a copy waits for it
            cpu = tables[torch.device("cpu")]
            tables[sigma.device] = cpu.to(sigma.device, finest_dtype(sigma.device))
        return tables[sigma.device]


@dataclasses.dataclass(frozen=True)
class FlowPrecondition:
    r"""A flow-matching network on $x_s = (1 - s) x_0 + s \epsilon$.

    It predicts $v = \epsilon - x_0$, so that $D = x_s - s v$.
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float = 0.5
    num_timesteps: int = 1000
    """The network's time input is `num_timesteps * s`."""

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,)."""
        c_in = 1 / (1 + sigma)
        return Scales(c_in, -sigma * c_in, c_in, self.smooth_c_noise(sigma))

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`num_timesteps * s`, whose last bit a network with an embedding of timesteps can see."""
        exact = sigma.to(finest_dtype(sigma.device))
        return (self.num_timesteps * exact / (1 + exact)).to(sigma.dtype)


@dataclasses.dataclass(frozen=True)
class TimestepEDMPrecondition(EDMPrecondition):
    """EDM's preconditioning with the noise input `250 ln(sigma)` instead of `ln(sigma) / 4`.

    The networks of the consistency models code use it (Song et al. 2023).
    """

    def smooth_c_noise(self, sigma: Tensor) -> Tensor:
        """`250 ln(sigma)`."""
        return 250 * sigma.log()
