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


def trajectory(z: Tensor, sigma: Tensor, F: Tensor, pinned_at: float) -> Tensor:
    r"""The student's sample at `sigma`, a blend of its noise `z` and its raw output `F`.

    $x(z, \sigma) = \frac{\sigma}{\sigma_{max}} z + (1 - \frac{\sigma}{\sigma_{max}}) F$
    At `sigma_max` it is `z`, whatever `F` is: the boundary condition holds by construction. With
    an infinite level in its place nothing is pinned, and x is F.

    Args:
        z: Starting noise, shape (b, ...).
        sigma: Noise levels, shape (b,).
        F: The raw student there, shape (b, ...).
        pinned_at: `sigma_max`, where the trajectory starts, or infinity.
    """
    share = over_sample(sigma / pinned_at, z)
    rest = over_sample(1 - sigma / pinned_at, z)
    return share * z + rest * F


def data_form(z: Tensor, point: Point, denoised: Tensor, pinned_at: float) -> Pair:
    r"""Equation 9 of the paper: $x - \sigma \frac{dx}{d\sigma}$ and $D(x, \sigma)$."""
    return point.F_minus_dF_dtau, denoised


def velocity_form(z: Tensor, point: Point, denoised: Tensor, pinned_at: float) -> Pair:
    r"""Equation 8 of the paper: $\frac{dx}{d\sigma}$ and $\frac{x - D(x, \sigma)}{\sigma}$.

    Its residual is that of the data form times $-1/\sigma$. The derivative is taken as
    $\frac{z - F}{\sigma_{max}} + \frac{1}{\sigma} \frac{dF}{d\tau}$, where nothing large cancels.
    """
    sigma = over_sample(point.sigma, z)
    x = trajectory(z, point.sigma, point.F, pinned_at)
    dF_dtau = point.F - point.F_minus_dF_dtau
    dx_dsigma = (z - point.F) / pinned_at + dF_dtau / sigma
    return dx_dsigma, (x - denoised) / sigma


RESIDUALS: dict[str, Callable[[Tensor, Point, Tensor, float], Pair]] = {
    "data": data_form,
    "velocity": velocity_form,
}


def through_both(point: Point) -> Point:
    r"""The published gradient, through both parts of $F - \frac{dF}{d\tau}$."""
    return point


def through_value(point: Point) -> Point:
    r"""The gradient through the value $F$; the derivative is held still, as if in the target.

    As in bootstrapped training: nothing but the direction of the difference decides whether that
    converges (docs/numeric-traps.md, "Which way information flows").
    """
    still = point.F_minus_dF_dtau.detach() + (point.F - point.F.detach())
    return point._replace(F_minus_dF_dtau=still)


def through_derivative(point: Point) -> Point:
    r"""The gradient through the derivative $\frac{dF}{d\tau}$; the value is held still."""
    slope = point.F_minus_dF_dtau - point.F
    still = point.F_minus_dF_dtau.detach() + (slope - slope.detach())
    return point._replace(F=point.F.detach(), F_minus_dF_dtau=still)


GRADIENTS: dict[str, Callable[[Point], Point]] = {
    "both": through_both,
    "value": through_value,
    "derivative": through_derivative,
}
"""Which part of the prediction the gradient flows through; the values are the same bit for bit."""
