r"""Physics Informed Distillation (Tee et al., TMLR 2024, arXiv 2411.08378).

The student represents the whole trajectory $x(z, \sigma)$ and minimises the residual of the
probability-flow ODE. This needs the teacher and noise, but no data:

$$\mathrm{distance}\left(x - \sigma \frac{dx}{d\sigma},\; \mathrm{sg}[D(x, \sigma)]\right)$$

The gradient flows through every student evaluation in the derivative and never into the teacher.
The published choices are `OneSided`, `data_form` and the distance `lpips`; docs/mathematics.md
derives the alternatives.
"""

from collections.abc import Callable
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.derivative import Central, DerivativeScheme, ForwardMode, OneSided, step_for
from pidistill.distance import Distance, DistanceName, distance_for, l2, normalised
from pidistill.methods.base import Batch, Distillation, Losses
from pidistill.methods.noise_levels import DRAWS
from pidistill.methods.settings import MethodSettings
from pidistill.networks import fresh_network
from pidistill.numerics import evaluation_dtype
from pidistill.residual import RESIDUALS, Residual
from pidistill.schedule import constant_sigma
from pidistill.students import TrajectoryStudent, trajectory_student


def pid_loss(
    student: TrajectoryStudent,
    teacher: Denoiser,
    z: Tensor,
    sigma: Tensor,
    label: Tensor | None,
    *,
    derivative: DerivativeScheme,
    residual: Residual,
    distance: Distance,
) -> tuple[Tensor, Tensor]:
    """The PID loss per sample, unweighted.

    Args:
        student: The student.
        teacher: The teacher.
        z: Starting noise, shape (b, *sample_shape).
        sigma: Noise levels, shape (b,), float64.
        label: Class labels (b,), or None.
        derivative: The scheme for the student's derivative.
        residual: The form of the residual.
        distance: The distance between its two sides.

    Returns:
        The losses and the noise levels at which they were evaluated, both of shape (b,).
    """

    def F(nodes: Tensor) -> Tensor:  # noqa: N802
        num = len(nodes)
        labels = None if label is None else label.repeat(num)
        repeated = z.repeat(num, *[1] * (z.ndim - 1))
        return student.F(repeated, nodes.flatten(), labels).unflatten(0, (num, -1))

    point = derivative(F, student.share, sigma)
    x = student.blend(z, point.sigma, point.F)
    with torch.no_grad():
        denoised = teacher(x, point.sigma.to(x), label)
    prediction, target = residual(x, point, denoised.to(z.dtype))
    return distance(prediction, target), point.sigma


class PIDSettings(MethodSettings):
    """Settings of PID; the defaults are those of the `fast` preset."""

    name: Literal["pid"] = "pid"
    derivative: Literal["one-sided", "central", "jvp"] = "central"
    """Scheme of the student's derivative (`pidistill.derivative`); published: one-sided."""
    step: float | None = pydantic.Field(default=None, gt=0, le=2)
    """Width of a central difference in ln(sigma); if unset, it follows from the precision
    (`derivative.step_for`): 0.1, but 0.5 in bf16."""
    num_nodes: int = pydantic.Field(default=250, ge=2, le=10**6)
    """Number of nodes N of the rho-7 grid, for the one-sided difference and the draw `nodes`."""
    draw: Literal["nodes", "rho", "log", "log-normal", "theta", "log-theta"] = "log"
    """Distribution of noise levels: uniform over the N nodes (published), or continuous: uniform in
    sigma^(1/7), uniform in ln(sigma), log-normal as in EDM's training, uniform in
    arctan(sigma / sigma_data), or half of that and half uniform in ln(sigma)."""
    residual: Literal["data", "velocity"] = "data"
    """Form of the residual (`pidistill.residual`); published: data."""
    distance: DistanceName = "l2"
    """Distance between the two sides of the residual (`pidistill.distance`); published: lpips."""
    normalise: float = pydantic.Field(default=1e-3, ge=0)
    """Each loss is divided by sqrt(its detached value + normalise); 0 disables this, as
    published."""
    anchored: bool | None = None
    """Whether F has the teacher's scales at sigma_max (`TrajectoryStudent`); published: no. If
    unset, it does when the teacher's network predicts data rather than noise
    (`students.should_anchor`)."""
    initialisation: Literal["copied", "random"] = "copied"
    """Whether the student's network starts from the teacher's weights (published) or from random
    weights drawn with the run's seed, in the same architecture."""
    parametrisation: Literal["linear", "edm", "soft"] = "edm"
    """Form of the trajectory (`pidistill.students.TRAJECTORIES`); published: linear."""
    boundary_weight: float = pydantic.Field(default=1.0, ge=0)
    """Weight of the penalty on x(z, sigma_max) - z in the parametrisation `soft`; the other
    parametrisations satisfy this boundary condition by construction."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_version_0_1(cls, table: Any) -> Any:
        """Drop removed settings that have their 0.1 defaults; reject any other value."""
        if not isinstance(table, dict):
            return table
        table = dict(table)
        for key, (default, instead) in REMOVED.items():
            value = table.pop(key, default)
            if value != default:
                raise ValueError(f"method.{key} = {value!r} was removed in 0.2; {instead}")
        for key, instead in LOG_ODDS.items():
            if table.get(key) == "log-odds":
                raise ValueError(f"method.{key} = 'log-odds' was removed in 0.2; {instead}")
        return table


REMOVED = {
    "weight": ("uniform", "choose another draw of noise levels (draw)"),
    "gradient": ("both", "use the method boot, which detaches its target"),
}
"""Settings removed since version 0.1: their defaults and what to use instead."""

LOG_ODDS = {
    "derivative": "choose central, the same difference in ln(sigma)",
    "parametrisation": "choose linear, which gave the same results, or edm",
}
"""Settings that lost the value `log-odds`, and what to use instead."""

DERIVATIVES: dict[str, Callable[[PIDSettings, Denoiser, torch.dtype], DerivativeScheme]] = {
    "one-sided": lambda settings, teacher, precision: OneSided(
        teacher.sigma_min, teacher.sigma_max, settings.num_nodes
    ),
    "central": lambda settings, teacher, precision: Central(
        teacher.sigma_max, settings.step or step_for(precision)
    ),
    "jvp": lambda settings, teacher, precision: ForwardMode(),
}
"""The schemes, for a student that is evaluated in `precision`."""

INITIALISATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copied": lambda network: network,
    "random": fresh_network,
}
"""What to do with the network that a student was built with."""


class PID(Distillation):
    """PID as a training method."""

    Settings = PIDSettings
    needs = "noise"
    student: TrajectoryStudent

    def __init__(
        self, settings: PIDSettings, student: TrajectoryStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`.

        Raises `PidistillError` if the distance does not suit the samples.
        """
        super().__init__(settings, student, teacher)
        self.teacher_evaluations = teacher.evaluations_per_call
        self.student_evaluations = self.derivative(torch.float32).evaluations
        self.residual = RESIDUALS[settings.residual]
        self.draw = DRAWS[settings.draw]
        self.distance = distance_for(settings.distance, teacher.sample_shape)

    @classmethod
    def make_student(
        cls, settings: PIDSettings, teacher: Denoiser, network: nn.Module | None
    ) -> TrajectoryStudent:
        """See `Distillation.make_student`."""
        student = trajectory_student(settings.parametrisation, teacher, network, settings.anchored)
        student.network = INITIALISATIONS[settings.initialisation](student.network).eval()
        return student

    @classmethod
    def build(
        cls,
        settings: PIDSettings,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> Distillation:
        """See `Method.build`; some parametrisations use a variant of the method."""
        kind = BY_PARAMETRISATION[settings.parametrisation] if cls is PID else cls
        return super(PID, kind).build(settings, teacher=teacher, data=data, network=network)

    def derivative(self, precision: torch.dtype) -> DerivativeScheme:
        """The scheme of the student's derivative, if it is evaluated in `precision`."""
        return DERIVATIVES[self.settings.derivative](self.settings, self.teacher, precision)

    def loss(self, batch: Batch) -> Losses:
        """Draw noise and noise levels for the batch and return its losses."""
        uniform = batch.draws.uniform("train sigma")
        z = self.noise(batch)
        loss, sigma = pid_loss(
            self.student,
            self.teacher,
            z,
            self.draw(uniform, self.teacher, self.settings.num_nodes),
            batch.label,
            derivative=self.derivative(evaluation_dtype(z)),
            residual=self.residual,
            distance=self.distance,
        )
        scalars = {"residual": loss.detach().mean()}
        return Losses(normalised(loss, self.settings.normalise), sigma, scalars)


def boundary_penalty(student: TrajectoryStudent, z: Tensor, label: Tensor | None) -> Tensor:
    """The mean square of `(x(z, sigma_max) - z) / sigma_max`, shape (b,).

    Args:
        student: The student.
        z: Starting noise, shape (b, *sample_shape).
        label: Class labels (b,), or None.
    """
    sigma = constant_sigma(student.sigma_max, z)
    return l2(student(z, sigma, label) / student.sigma_max, z / student.sigma_max)


class SoftBoundaryPID(PID):
    """An ablation: a penalty replaces the boundary condition, for students that do not pin it."""

    def __init__(
        self, settings: PIDSettings, student: TrajectoryStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`; the penalty costs one more student evaluation."""
        super().__init__(settings, student, teacher)
        self.student_evaluations += 1

    def loss(self, batch: Batch) -> Losses:
        """The PID losses plus the weighted penalty."""
        losses = super().loss(batch)
        penalty = boundary_penalty(self.student, self.noise(batch), batch.label)
        loss = losses.loss + self.settings.boundary_weight * penalty
        return Losses(loss, losses.sigma, {**losses.scalars, "boundary": penalty.detach().mean()})


BY_PARAMETRISATION: dict[str, type[PID]] = {"linear": PID, "edm": PID, "soft": SoftBoundaryPID}
