"""How well a student solves its teacher's ODE: errors and residuals along the path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.noise import initial_noise
from pidistill.ode import path, sampling_sigmas
from pidistill.students.labels import labels_for
from pidistill.students.path import PathStudent


class Paths(NamedTuple):
    """The teacher's and the student's trajectories from the same noise."""

    sigmas: Tensor
    """Noise levels, shape (k,), decreasing; without the final 0."""
    teacher: Tensor
    """Shape (k, n, *sample_shape)."""
    student: Tensor
    """Shape (k, n, *sample_shape)."""
    z: Tensor
    """The starting noise, shape (n, *sample_shape)."""
    label: Tensor | None
    """Class labels (n,), or None."""
    teacher_nfe: int
    """Network evaluations of the teacher's full solve."""


@torch.no_grad()
def solve_paths(
    student: PathStudent,
    teacher: Denoiser,
    num: int,
    *,
    seed: int,
    steps: int,
    first: int = 0,
) -> Paths:
    """Compute the paths of samples `first .. first + num - 1` at the teacher's `steps` nodes."""
    z = initial_noise(student, num, seed=seed, first=first)
    label = labels_for(student, num, first=first)
    label = None if label is None else label.to(z.device)
    sigmas = sampling_sigmas(teacher, steps)
    nodes = list(path(teacher, z, sigmas, label=label))
    return Paths(
        sigmas=sigmas[:-1],
        teacher=torch.stack([node.x for node in nodes[:-1]]),
        student=torch.stack([student(z, sigma.expand(num), label) for sigma in sigmas[:-1]]),
        z=z,
        label=label,
        teacher_nfe=nodes[-1].nfe,
    )


def trajectory_metrics(
    student: PathStudent,
    teacher: Denoiser,
    num: int,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Errors, residuals and straightness along the first `num` paths, as JSON values.

    The teacher, on the student's device, is solved in `steps` nodes, `batch_size` paths at a time;
    `on_batch` is called with the number of paths of each batch.

    Returns:
        `straightness`, `teacher_straightness`, and `trajectory` with the number of paths, the noise
        levels, and the RMS `error` and `residual` at each level.
    """
    parts = []
    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        paths = solve_paths(student, teacher, count, seed=seed, steps=steps, first=first)
        bends = [
            straightness(paths.sigmas, x, teacher.sigma_data)
            for x in (paths.student, paths.teacher)
        ]
        parts.append(
            [error_along_path(paths), residual_along_path(student, teacher, paths), *bends]
        )
        on_batch(count)
    error, residual, bend, teacher_bend = (torch.cat(p, -1) for p in zip(*parts, strict=True))
    return {
        "straightness": bend.mean().item(),
        "teacher_straightness": teacher_bend.mean().item(),
        "trajectory": {
            "num_samples": num,
            "sigma": paths.sigmas.tolist(),
            "error": [rms(level) for level in error],
            "residual": [rms(level) for level in residual],
        },
    }


def straightness(sigmas: Tensor, points: Tensor, sigma_data: float) -> Tensor:
    r"""Straightness $S$ of Liu et al. 2022; 0 for straight lines of constant speed.

    $S = \int_0^1 E \left| (y_1 - y_0) - \frac{dy}{dt} \right|^2 dt$ (arXiv 2209.03003), averaged
    over pixels. Here $y = (1 - t) x_0 + t \epsilon$ interpolates between data and noise of unit
    variance; in EDM coordinates $y = x / (\sigma_{data} + \sigma)$ and $t = \sigma / (\sigma_{data}
    + \sigma)$. The paths are piecewise linear through `points` (k, b, *sample_shape), in EDM
    coordinates, at the decreasing `sigmas` (k,); time is rescaled to run from the first node to the
    last.

    Returns:
        Shape (b,), float64.
    """
    sigmas = sigmas.double().to(points.device)
    y = points.double().flatten(2) / (sigma_data + sigmas)[:, None, None]
    time = sigmas / (sigma_data + sigmas)
    share = (time.diff() / (time[-1] - time[0]))[:, None, None]
    velocity = y.diff(dim=0) / share
    return (share * (velocity - (y[-1] - y[0])).square()).sum(0).mean(1)


def per_sample_rms(x: Tensor, reference: Tensor) -> Tensor:
    """Root mean squared difference per sample, shape (b,), float64."""
    return (x.double() - reference.double()).square().flatten(1).mean(1).sqrt()


def rms(values: Tensor) -> float:
    """Root mean square of `values`."""
    return values.double().square().mean().sqrt().item()


def error_along_path(paths: Paths) -> Tensor:
    """RMS distance between student and teacher per noise level and path, shape (k, n)."""
    pairs = zip(paths.student, paths.teacher, strict=True)
    return torch.stack([per_sample_rms(x, solved) for x, solved in pairs])


@torch.no_grad()
def residual_along_path(student: PathStudent, teacher: Denoiser, paths: Paths) -> Tensor:
    """RMS of `x - sigma dx/dsigma - D(x, sigma)`, with the exact derivative, shape (k, n)."""
    z, label = paths.z, paths.label
    residuals = []
    for level, x in zip(paths.sigmas, paths.student, strict=True):
        sigma = level.repeat(len(z))
        denoised = teacher(x, sigma.to(x), label)
        residuals.append(per_sample_rms(student.intercept(z, sigma, label), denoised))
    return torch.stack(residuals)
