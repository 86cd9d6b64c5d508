"""How well a student solves its teacher's equation: errors and residuals along the path."""

from collections.abc import Callable

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.derivative import ForwardMode
from pidistill.residual import trajectory
from pidistill.student import TrajectoryStudent


def per_sample_rms(x: Tensor, reference: Tensor) -> Tensor:
    """Root of the mean squared difference of each sample, shape (b,), float64."""
    return (x.double() - reference.double()).square().flatten(1).mean(1).sqrt()


def rms(values: Tensor) -> float:
    """Root mean square of `values`."""
    return values.double().square().mean().sqrt().item()


def _at_every(sigmas: Tensor, z: Tensor, measure: Callable[[Tensor, int], Tensor]) -> list[float]:
    """The root mean square over samples of `measure(sigma (b,), index)` at each noise level."""
    return [rms(measure(sigma.repeat(len(z)), i)) for i, sigma in enumerate(sigmas)]


@torch.no_grad()
def error_along_path(
    student: TrajectoryStudent, z: Tensor, sigmas: Tensor, points: Tensor, label: Tensor | None
) -> list[float]:
    """RMS distance of the student from given points of the teacher's paths.

    Args:
        student: The student.
        z: Starting noise, shape (b, *sample_shape).
        sigmas: Noise levels, shape (k,), float64.
        points: The teacher's paths there, shape (k, b, *sample_shape).
        label: Class labels (b,), or None.

    Returns:
        One number a noise level.
    """
    return _at_every(
        sigmas, z, lambda sigma, i: per_sample_rms(student(z, sigma, label), points[i])
    )


@torch.no_grad()
def residual_along_path(
    student: TrajectoryStudent, teacher: Denoiser, z: Tensor, sigmas: Tensor, label: Tensor | None
) -> list[float]:
    """RMS of the residual `x - sigma dx/dsigma - D(x, sigma)` with the exact derivative.

    Arguments as in `error_along_path`; returns one number a noise level.
    """
    derivative = ForwardMode(student.pinned_at)

    def residual(sigma: Tensor, _: int) -> Tensor:
        point = derivative(lambda nodes: student.F(z, nodes[0], label)[None], sigma)
        x = trajectory(z, sigma, point.F, student.pinned_at)
        return per_sample_rms(point.F_minus_dF_dtau, teacher(x, sigma.to(x), label))

    return _at_every(sigmas, z, residual)
