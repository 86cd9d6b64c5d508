r"""The residual of the probability-flow ODE at the student, in two forms.

Each form is a pair (prediction, target) whose difference is the residual; the PID loss is a
distance between the two (arXiv 2411.08378). The gradient flows through every student evaluation;
`denoised` carries none.
"""

from collections.abc import Callable

from torch import Tensor

from pidistill.denoiser import over_sample
from pidistill.derivative import Point

Pair = tuple[Tensor, Tensor]
Residual = Callable[[Tensor, Point, Tensor], Pair]
"""Maps x (b, ...), the student's `Point` there and D(x, sigma) to (prediction, target)."""


def data_form(x: Tensor, point: Point, denoised: Tensor) -> Pair:
    r"""Equation 9 of the paper, the published form: $x - \sigma \frac{dx}{d\sigma}$ and $D$."""
    return point.intercept, denoised


def velocity_form(x: Tensor, point: Point, denoised: Tensor) -> Pair:
    r"""Equation 8 of the paper: $\frac{dx}{d\sigma}$ and $\frac{x - D}{\sigma}$.

    Its residual is the data form's times $-1/\sigma$.
    """
    sigma = over_sample(point.sigma, x)
    return (x - point.intercept) / sigma, (x - denoised) / sigma


RESIDUALS: dict[str, Residual] = {"data": data_form, "velocity": velocity_form}
