r"""Physics Informed Distillation (Tee et al., TMLR 2024, arXiv 2411.08378).

The student is the whole trajectory $x(z, \sigma)$; its loss is the residual of the
probability-flow ODE, and it needs the teacher and noise, no data:

$$\mathrm{distance}\left(x - \sigma \frac{dx}{d\sigma},\; \mathrm{sg}[D(x, \sigma)]\right)$$

The gradient flows through every student evaluation of the derivative and none into the teacher.
"""

from collections.abc import Callable
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.derivative import Central, DerivativeScheme, ForwardMode, LogOdds, OneSided
from pidistill.distance import Distance, DistanceName, distance_for
from pidistill.methods.base import Batch, Distillation, Losses, MethodSettings, require_teacher
from pidistill.residual import RESIDUALS, Pair, trajectory
from pidistill.schedule import karras_sigmas, sigma_at
from pidistill.student import TrajectoryStudent


class PIDSettings(MethodSettings):
    """Settings of PID; the defaults are those of the `fast` preset."""

    name: Literal["pid"] = "pid"
    derivative: Literal["one-sided", "central", "log-odds", "jvp"] = "central"
    """Scheme of the student's derivative (`pidistill.derivative`); published: one-sided."""
    step: float = pydantic.Field(default=0.1, gt=0, le=2)
    """Width of a central difference in ln(sigma), or in log-odds time."""
    num_nodes: int = pydantic.Field(default=250, ge=2)
    """Nodes N of the rho-7 grid, for the one-sided difference and the draw `nodes`."""
    draw: Literal["nodes", "rho", "log"] = "log"
    """Noise levels are drawn uniformly from the N nodes (published), or continuously, uniform in
    sigma^(1/7) or in ln(sigma)."""
    residual: Literal["data", "velocity"] = "data"
    """Form of the residual (`pidistill.residual`); published: data."""
    distance: DistanceName = "l2"
    """Distance between the two sides of the residual (`pidistill.distance`); published: lpips."""
    normalise: float = pydantic.Field(default=1e-3, ge=0)
    """Each loss is divided by sqrt(its detached value + normalise); 0 turns that off, as
    published."""
    anchored: bool = True
    """Whether F is scaled as the teacher is at sigma_max (`TrajectoryStudent`); published: no."""


def pid_loss(
    student: TrajectoryStudent,
    teacher: Denoiser,
    z: Tensor,
    sigma: Tensor,
    label: Tensor | None,
    *,
    derivative: DerivativeScheme,
    residual: Callable[..., Pair],
    distance: Distance,
) -> tuple[Tensor, Tensor]:
    """The PID loss of each sample, before any weighting.

    Args:
        student: The student.
        teacher: The teacher.
        z: Starting noise, shape (b, *sample_shape).
        sigma: Noise levels, shape (b,), float64 on the CPU.
        label: Class labels (b,), or None.
        derivative: How the student's derivative is taken.
        residual: The form of the residual.
        distance: The distance between its two sides.

    Returns:
        The losses, and the noise levels where they were taken, both of shape (b,).
    """

    def F(nodes: Tensor) -> Tensor:  # noqa: N802
        num = len(nodes)
        labels = None if label is None else label.repeat(num)
        repeated = z.repeat(num, *[1] * (z.ndim - 1))
        return student.F(repeated, nodes.flatten(), labels).unflatten(0, (num, -1))

    # A difference multiplies rounding errors by up to 50: it is never taken in half precision.
    with torch.autocast(z.device.type, enabled=False):
        point = derivative(F, sigma)
        x = trajectory(z, point.sigma, point.F, student.sigma_max)
    with torch.no_grad():
        denoised = teacher(x, point.sigma.to(x), label)
    prediction, target = residual(z, point, denoised.to(z.dtype), student.sigma_max)
    return distance(prediction, target), point.sigma


def draw_nodes(uniform: Tensor, settings: PIDSettings, teacher: Denoiser) -> Tensor:
    """A node of the rho-7 grid, all equally likely: the published draw."""
    nodes = karras_sigmas(settings.num_nodes, teacher.sigma_min, teacher.sigma_max)
    return nodes[(uniform * settings.num_nodes).long()]


def draw_rho(uniform: Tensor, settings: PIDSettings, teacher: Denoiser) -> Tensor:
    """Uniform in sigma^(1/7), the continuous form of the rho-7 grid."""
    return sigma_at(uniform, teacher.sigma_min, teacher.sigma_max)


def draw_log(uniform: Tensor, settings: PIDSettings, teacher: Denoiser) -> Tensor:
    """Uniform in ln(sigma)."""
    return teacher.sigma_max * (teacher.sigma_min / teacher.sigma_max) ** uniform


DRAWS = {"nodes": draw_nodes, "rho": draw_rho, "log": draw_log}

DERIVATIVES: dict[str, Callable[[PIDSettings, Denoiser], DerivativeScheme]] = {
    "one-sided": lambda s, teacher: OneSided(teacher.sigma_min, teacher.sigma_max, s.num_nodes),
    "central": lambda s, teacher: Central(teacher.sigma_max, s.step),
    "log-odds": lambda s, teacher: LogOdds(teacher.sigma_max, s.step),
    "jvp": lambda s, teacher: ForwardMode(teacher.sigma_max),
}


class PID(Distillation):
    """The method, with its settings looked up once."""

    Settings = PIDSettings
    needs = "noise"
    student: TrajectoryStudent

    def __init__(
        self, settings: PIDSettings, student: TrajectoryStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`."""
        super().__init__(settings, student, teacher)
        self.teacher_evaluations = teacher.evaluations_per_call
        self.derivative = DERIVATIVES[settings.derivative](settings, teacher)
        self.residual = RESIDUALS[settings.residual]
        self.distance = distance_for(settings.distance, teacher.sample_shape)

    @classmethod
    def build(
        cls,
        settings: PIDSettings,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> "PID":
        """Make the student from the teacher alone (see `Method.build`); no data are used."""
        teacher = require_teacher("pid", teacher)
        student = TrajectoryStudent.from_teacher(
            teacher, network=network, anchored=settings.anchored
        )
        return cls(settings, student, teacher)

    def loss(self, batch: Batch) -> Losses:
        """Draw noise and noise levels for the batch and return its losses."""
        parameter = next(self.student.parameters())
        z = self.teacher.sigma_max * batch.draws.normal("train z", self.teacher.sample_shape)
        z = z.to(parameter)
        sigma = DRAWS[self.settings.draw](
            batch.draws.uniform("train sigma"), self.settings, self.teacher
        )
        loss, sigma = pid_loss(
            self.student,
            self.teacher,
            z,
            sigma,
            batch.label,
            derivative=self.derivative,
            residual=self.residual,
            distance=self.distance,
        )
        scalars = {"residual": loss.detach().mean()}
        if self.settings.normalise > 0:
            loss = loss / (loss.detach() + self.settings.normalise).sqrt()
        return Losses(loss, sigma, scalars)
