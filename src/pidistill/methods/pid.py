r"""Physics Informed Distillation (Tee et al., TMLR 2024, arXiv 2411.08378).

The student is the whole trajectory $x(z, \sigma)$; its loss is the residual of the
probability-flow ODE, and it needs the teacher and noise, no data:

$$\mathrm{distance}\left(x - \sigma \frac{dx}{d\sigma},\; \mathrm{sg}[D(x, \sigma)]\right)$$

The gradient flows through every student evaluation of the derivative and none into the teacher.

The settings that are not the published ones are there to be compared; docs/mathematics.md has
their formulas.
"""

import math
from collections.abc import Callable
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.derivative import (
    Central,
    DerivativeScheme,
    ForwardMode,
    LogOdds,
    OneSided,
    Point,
)
from pidistill.distance import Distance, DistanceName, distance_for, l2
from pidistill.errors import PidistillError
from pidistill.methods.base import Batch, Distillation, Losses, require_teacher
from pidistill.methods.noise_levels import DRAWS, WEIGHTS, mean_weight
from pidistill.methods.settings import MethodSettings
from pidistill.networks import fresh_network
from pidistill.residual import GRADIENTS, RESIDUALS, Pair, through_both, trajectory
from pidistill.students.parametrisations import trajectory_student
from pidistill.students.trajectory import TrajectoryStudent


class PIDSettings(MethodSettings):
    """Settings of PID; the defaults are those of the `fast` preset."""

    name: Literal["pid"] = "pid"
    derivative: Literal["one-sided", "central", "log-odds", "jvp"] = "central"
    """Scheme of the student's derivative (`pidistill.derivative`); published: one-sided."""
    step: float = pydantic.Field(default=0.1, gt=0, le=2)
    """Width of a central difference in ln(sigma), or in log-odds time."""
    num_nodes: int = pydantic.Field(default=250, ge=2, le=10**6)
    """Nodes N of the rho-7 grid, for the one-sided difference and the draw `nodes`."""
    draw: Literal["nodes", "rho", "log", "log-normal"] = "log"
    """Noise levels are drawn uniformly from the N nodes (published), or continuously: uniform in
    sigma^(1/7), uniform in ln(sigma), or log-normal as in EDM's training."""
    weight: Literal["uniform", "low-noise", "high-noise"] = "uniform"
    """Weight of a loss by its noise level (`pidistill.methods.noise_levels`), 1 on average over
    the draw; published: uniform."""
    residual: Literal["data", "velocity"] = "data"
    """Form of the residual (`pidistill.residual`); published: data."""
    distance: DistanceName = "l2"
    """Distance between the two sides of the residual (`pidistill.distance`); published: lpips."""
    gradient: Literal["both", "value", "derivative"] = "both"
    """Which part of the prediction `F - dF/dtau` the gradient flows through; published: both."""
    normalise: float = pydantic.Field(default=1e-3, ge=0)
    """Each loss is divided by sqrt(its detached value + normalise); 0 turns that off, as
    published."""
    anchored: bool | None = None
    """Whether F is scaled as the teacher is at sigma_max (`TrajectoryStudent`); published: no. Left
    out, it is where the teacher's network predicts data, not noise (`student.should_anchor`)."""
    initialisation: Literal["copied", "random"] = "copied"
    """Whether the student's network begins with the teacher's weights (published), or with fresh
    ones of the same architecture that the run's seed decides."""
    parametrisation: Literal["linear", "edm", "log-odds", "soft"] = "edm"
    """Form of the trajectory (`pidistill.students.parametrisations`); published: linear."""
    boundary_weight: float = pydantic.Field(default=1.0, ge=0)
    """Weight of the penalty on x(z, sigma_max) - z in the parametrisation `soft`; for the others
    that vanishes by construction."""


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
    gradient: Callable[[Point], Point] = through_both,
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
        gradient: What the gradient flows through.

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
        point = gradient(derivative(F, sigma))
        x = trajectory(z, point.sigma, point.F, student.pinned_at)
    with torch.no_grad():
        denoised = teacher(x, point.sigma.to(x), label)
    prediction, target = residual(z, point, denoised.to(z.dtype), student.pinned_at)
    return distance(prediction, target), point.sigma


def boundary_penalty(student: TrajectoryStudent, z: Tensor, label: Tensor | None) -> Tensor:
    """The soft boundary condition: the mean square of `x(z, sigma_max) - z` over `sigma_max`^2.

    Args:
        student: The student.
        z: Starting noise, shape (b, *sample_shape).
        label: Class labels (b,), or None.

    Returns:
        The penalties, shape (b,), zero where the condition holds; always so for a student that is
        pinned at `sigma_max`.
    """
    sigma = torch.full((len(z),), student.sigma_max, dtype=torch.float64)
    with torch.autocast(z.device.type, enabled=False):
        return l2(student(z, sigma, label) / student.sigma_max, z / student.sigma_max)


DERIVATIVES: dict[str, Callable[[PIDSettings, TrajectoryStudent], DerivativeScheme]] = {
    "one-sided": lambda settings, student: OneSided(
        student.sigma_min, student.sigma_max, settings.num_nodes, pinned_at=student.pinned_at
    ),
    "central": lambda settings, student: Central(
        student.sigma_max, settings.step, pinned_at=student.pinned_at
    ),
    "log-odds": lambda settings, student: LogOdds(student.sigma_max, settings.step),
    "jvp": lambda settings, student: ForwardMode(student.pinned_at),
}

INITIALISATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copied": lambda network: network,
    "random": fresh_network,
}
"""What becomes of the network that a student was built with."""


class PID(Distillation):
    """The method, with its settings looked up once."""

    Settings = PIDSettings
    needs = "noise"
    student: TrajectoryStudent

    def __init__(
        self, settings: PIDSettings, student: TrajectoryStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`.

        Raises `PidistillError` when the distance or the derivative does not suit the student.
        """
        super().__init__(settings, student, teacher)
        self.pinned = math.isfinite(student.pinned_at)
        if settings.derivative == "log-odds" and not self.pinned:
            raise PidistillError(
                f"derivative is 'log-odds', which needs a student that is pinned at sigma_max, but "
                f"parametrisation is {settings.parametrisation!r}; choose one-sided, central or jvp"
            )
        self.teacher_evaluations = teacher.evaluations_per_call
        self.derivative = DERIVATIVES[settings.derivative](settings, student)
        self.student_evaluations = self.derivative.evaluations + (0 if self.pinned else 1)
        self.residual = RESIDUALS[settings.residual]
        self.gradient = GRADIENTS[settings.gradient]
        self.draw = DRAWS[settings.draw]
        self.weight = WEIGHTS[settings.weight]
        self.mean_weight = mean_weight(self.weight, self.draw, settings, teacher)
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
        student = trajectory_student(settings.parametrisation, teacher, network, settings.anchored)
        student.network = INITIALISATIONS[settings.initialisation](student.network).eval()
        return cls(settings, student, teacher)

    def loss(self, batch: Batch) -> Losses:
        """Draw noise and noise levels for the batch and return its losses."""
        parameter = next(self.student.parameters())
        z = self.teacher.sigma_max * batch.draws.normal("train z", self.teacher.sample_shape)
        z = z.to(parameter)
        sigma = self.draw(batch.draws.uniform("train sigma"), self.settings, self.teacher)
        loss, sigma = pid_loss(
            self.student,
            self.teacher,
            z,
            sigma,
            batch.label,
            derivative=self.derivative,
            residual=self.residual,
            distance=self.distance,
            gradient=self.gradient,
        )
        scalars = {"residual": loss.detach().mean()}
        if self.settings.normalise > 0:
            loss = loss / (loss.detach() + self.settings.normalise).sqrt()
        weight = self.weight(sigma, self.teacher.sigma_data) / self.mean_weight
        loss = loss * weight.to(loss)
        if not self.pinned:
            penalty = boundary_penalty(self.student, z, batch.label)
            scalars["boundary"] = penalty.detach().mean()
            loss = loss + self.settings.boundary_weight * penalty
        return Losses(loss, sigma, scalars)
