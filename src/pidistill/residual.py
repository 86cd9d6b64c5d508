r"""The residual of the probability-flow ODE at the student, in its two forms.

Each form is a pair (prediction, target) whose difference is the residual; a distance between them
is the loss of PID (arXiv 2411.08378). The gradient flows through the student wherever it stands;
`denoised` comes without one.
"""

from collections.abc import Callable

from torch import Tensor

from pidistill.denoiser import over_sample
from pidistill.derivative import Point

Pair = tuple[Tensor, Tensor]


def trajectory(z: Tensor, sigma: Tensor, F: Tensor, sigma_max: float) -> Tensor:
    r"""The student's sample at `sigma`, a blend of its noise `z` and its raw output `F`.

    $x(z, \sigma) = \frac{\sigma}{\sigma_{max}} z + (1 - \frac{\sigma}{\sigma_{max}}) F$
    At `sigma_max` it is `z`, whatever `F` is: the boundary condition holds by construction.

    Args:
        z: Starting noise, shape (b, ...).
        sigma: Noise levels, shape (b,).
        F: The raw student there, shape (b, ...).
        sigma_max: Where the trajectory starts.
    """
    share = over_sample(sigma / sigma_max, z)
    rest = over_sample(1 - sigma / sigma_max, z)
    return share * z + rest * F


def data_form(z: Tensor, point: Point, denoised: Tensor, sigma_max: float) -> Pair:
    r"""Equation 9 of the paper: $x - \sigma \frac{dx}{d\sigma}$ and $D(x, \sigma)$."""
    return point.F_minus_dF_dtau, denoised


def velocity_form(z: Tensor, point: Point, denoised: Tensor, sigma_max: float) -> Pair:
    r"""Equation 8 of the paper: $\frac{dx}{d\sigma}$ and $\frac{x - D(x, \sigma)}{\sigma}$.

    Its residual is that of the data form times $-1/\sigma$. The derivative is taken as
    $\frac{z - F}{\sigma_{max}} + \frac{1}{\sigma} \frac{dF}{d\tau}$, where nothing large cancels.
    """
    sigma = over_sample(point.sigma, z)
    x = trajectory(z, point.sigma, point.F, sigma_max)
    dF_dtau = point.F - point.F_minus_dF_dtau
    dx_dsigma = (z - point.F) / sigma_max + dF_dtau / sigma
    return dx_dsigma, (x - denoised) / sigma


RESIDUALS: dict[str, Callable[[Tensor, Point, Tensor, float], Pair]] = {
    "data": data_form,
    "velocity": velocity_form,
}
