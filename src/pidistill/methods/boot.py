r"""BOOT (Gu et al. 2023, arXiv 2306.05544) in EDM coordinates.

The student predicts the signal $y(z, \sigma) = x - \sigma \epsilon$ with $\epsilon = z /
\sigma_{max}$; for a trajectory student, $y = (1 - \frac{\sigma}{\sigma_{max}}) F$. Along the ODE
$\frac{dy}{d \ln \sigma} = y - D$, so an Euler step from $t$ to a slightly smaller $s$ is

$$y(s) = y(t) + \delta (D(y(t) + t \epsilon, t) - y(t)), \quad \delta = 1 - \frac{s}{t}$$

The student at $s$ regresses on the right-hand side, detached as a whole, with weight
$1 / \delta^2$. A second loss pins the boundary: $F(z, \sigma_{max}) = D(z, \sigma_{max})$.

BOOT thus differs from PID in where the gradient goes: PID's reaches both ends of the difference.
"""

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, over_sample
from pidistill.distance import Distance, DistanceName, distance_for
from pidistill.methods.base import Batch, Distillation, Losses
from pidistill.methods.settings import MethodSettings
from pidistill.schedule import constant_sigma, karras_sigmas
from pidistill.students import TrajectoryStudent, trajectory_student


class BOOTSettings(MethodSettings):
    """Settings of BOOT."""

    name: Literal["boot"] = "boot"
    num_nodes: int = pydantic.Field(default=250, ge=2, le=10**6)
    """Number of nodes N of the rho-7 grid; `t` is a node and `s` the next one below."""
    boundary_weight: float = pydantic.Field(default=1.0, ge=0)
    """Weight of the boundary loss."""
    distance: DistanceName = "l2"
    """Distance between student and target (`pidistill.distance`), both divided by the step."""
    anchored: bool | None = None
    """Whether F has the teacher's scales at sigma_max (`TrajectoryStudent`). If unset, it does when
    the teacher's network predicts data rather than noise (`students.should_anchor`)."""
    parametrisation: Literal["linear", "edm"] = "linear"
    """Form of the trajectory (`pidistill.students`), pinned at sigma_max; published: linear."""


def signal(student: TrajectoryStudent, z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """The student's y(z, sigma) at `z` (b, ...) and `sigma` (b,), float64; shaped like `z`."""
    return over_sample(1 - sigma / student.sigma_max, z) * student.F(z, sigma, label)


def bootstrap_loss(
    student: TrajectoryStudent,
    teacher: Denoiser,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    label: Tensor | None,
    *,
    distance: Distance,
) -> Tensor:
    """The distance between the student at `s` and an Euler step from the student at `t`.

    Args:
        student: The student.
        teacher: The teacher.
        z: Starting noise, shape (b, *sample_shape).
        t: Noise levels, shape (b,), float64.
        s: Slightly lower noise levels, shaped like `t`.
        label: Class labels (b,), or None.
        distance: The distance. Both sides are divided by the step `1 - s / t`, which weights a
            squared distance by one over the squared step.

    Returns:
        The losses, shape (b,).
    """
    step = over_sample(1 - s / t, z)
    y_s = signal(student, z, s, label)
    with torch.no_grad():
        y_t = signal(student, z, t, label)
        denoised = teacher(y_t + over_sample(t / student.sigma_max, z) * z, t.to(z), label)
        target = y_t + step * (denoised.to(z.dtype) - y_t)
    return distance(y_s / step, target / step)


def boundary_loss(
    student: TrajectoryStudent,
    teacher: Denoiser,
    z: Tensor,
    label: Tensor | None,
    *,
    distance: Distance,
) -> Tensor:
    """The distance between F and D at `sigma_max`, shape (b,); arguments as in `bootstrap_loss`."""
    sigma = constant_sigma(student.sigma_max, z)
    prediction = student.F(z, sigma, label)
    with torch.no_grad():
        denoised = teacher(z, sigma.to(z), label)
    return distance(prediction, denoised.to(z.dtype))


class BOOT(Distillation):
    """BOOT as a training method."""

    Settings = BOOTSettings
    needs = "noise"
    student_evaluations = 2
    target_evaluations = 1
    student: TrajectoryStudent

    def __init__(
        self, settings: BOOTSettings, student: TrajectoryStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`."""
        super().__init__(settings, student, teacher)
        self.distance = distance_for(settings.distance, teacher.sample_shape)
        self.teacher_evaluations = 2 * teacher.evaluations_per_call  # at t, and at sigma_max

    @classmethod
    def make_student(
        cls, settings: BOOTSettings, teacher: Denoiser, network: nn.Module | None
    ) -> TrajectoryStudent:
        """See `Distillation.make_student`."""
        return trajectory_student(settings.parametrisation, teacher, network, settings.anchored)

    def loss(self, batch: Batch) -> Losses:
        """Draw noise and nodes for the batch and return the weighted sum of both losses."""
        z = self.noise(batch)
        num_nodes, teacher = self.settings.num_nodes, self.teacher
        index = batch.draws.integers("train node", num_nodes - 1)
        nodes = karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max, device=index.device)
        t, s = nodes[index], nodes[index + 1]
        bootstrap = bootstrap_loss(
            self.student, self.teacher, z, t, s, batch.label, distance=self.distance
        )
        boundary = boundary_loss(self.student, self.teacher, z, batch.label, distance=self.distance)
        scalars = {"bootstrap": bootstrap.detach().mean(), "boundary": boundary.detach().mean()}
        return Losses(bootstrap + self.settings.boundary_weight * boundary, s, scalars)
