r"""PID of the flow map: the residual of the ODE along paths from any noise level.

The student is $y(\theta) = y_s + (\theta_s - \theta) \bar N(y_s, \theta_s, \theta)$
(`pidistill.students.flow_map`). Its derivative must be the teacher's velocity at its own points:

$$-\frac{dy}{d\theta} = \bar N - (\theta_s - \theta) \frac{d \bar N}{d\theta} \;=\;
\mathrm{sg}[N(y(\theta), \theta)]$$

This is the Lagrangian form of flow map matching (Boffi et al. 2024, arXiv 2406.07507), with the
teacher's own velocity, and needs no data: a share of the paths starts from noise, the others from
where the student's own path from noise has come to. With all paths from noise it is PID in another
coordinate.
"""

import math
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, over_sample
from pidistill.derivative import step_for
from pidistill.distance import l2, normalised
from pidistill.methods.base import Batch, Distillation, Losses
from pidistill.methods.settings import MethodSettings
from pidistill.numerics import evaluation_dtype
from pidistill.precondition import EDMPrecondition
from pidistill.students.flow_map import FlowMapStudent

NARROWEST = 1e-3
"""Least width of a difference in theta."""
LOWEST_START = 0.02
"""Least distance of a start from theta_min, as a share of the whole range."""


class PIDMapSettings(MethodSettings):
    """Settings of the flow map's PID."""

    name: Literal["pid-map"] = "pid-map"
    step: float | None = pydantic.Field(default=None, gt=0, le=2)
    """Width of the central difference in ln(sigma), less near the ends of a path; if unset, it
    follows from the precision (`derivative.step_for`): 0.1, but 0.5 in bf16."""
    share_from_noise: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the paths that start at sigma_max; the others start at theta uniform below it."""
    normalise: float = pydantic.Field(default=1e-3, ge=0)
    """Each loss is divided by sqrt(its detached value + normalise); 0 disables this."""


def teacher_N(  # noqa: N802
    teacher: Denoiser, y: Tensor, theta: Tensor, label: Tensor | None
) -> Tensor:
    r"""The teacher's velocity $N(y, \theta) = \frac{D(x, \sigma) - c_{skip} x}{c_{out}}$.

    Args:
        teacher: The teacher.
        y: Points, shape (b, *sample_shape).
        theta: Their angles, shape (b,), float64.
        label: Class labels (b,), or None.
    """
    sigma = teacher.sigma_data * theta.tan()
    edm = EDMPrecondition(teacher.sigma_min, teacher.sigma_max, teacher.sigma_data).scales(sigma)
    x = y / over_sample(edm.c_in, y)
    denoised = teacher(x, sigma.to(x), label).to(x)
    return (denoised - over_sample(edm.c_skip, x) * x) / over_sample(edm.c_out, x)


def pid_map_loss(
    student: FlowMapStudent,
    teacher: Denoiser,
    y: Tensor,
    theta_s: Tensor,
    theta: Tensor,
    label: Tensor | None,
    *,
    step: float,
) -> tuple[Tensor, Tensor]:
    r"""The squared residual per sample, unweighted, in the units of a denoiser.

    The derivative is the chord's between $\theta_+$ and $\theta_-$ around `theta`:

    $$\frac{b \bar N_- - a \bar N_+}{\theta_+ - \theta_-} \quad \text{with}\quad
    a = \theta_s - \theta_+, \; b = \theta_s - \theta_-$$

    where $y_s$ has cancelled. The gradient flows through both ends, not into the teacher.

    Args:
        student: The student.
        teacher: The teacher.
        y: Starts of the paths, shape (b, *sample_shape).
        theta_s: Their angles, shape (b,), float64.
        theta: Angles between `theta_min` and `theta_s`, shape (b,), float64.
        label: Class labels (b,), or None.
        step: Width of the difference in ln(sigma).

    Returns:
        The losses and the noise levels at which they were evaluated, both of shape (b,).
    """
    width = (step / 2 * torch.sin(2 * theta)).clamp(min=NARROWEST)  # d theta = sin(2 theta)/2 d ln
    upper = torch.minimum(theta + width / 2, theta_s)
    lower = (upper - width).clamp(min=student.theta_min)
    upper = torch.minimum(lower + width, theta_s)
    middle = (upper + lower) / 2
    labels = None if label is None else label.repeat(2)
    starts = y.repeat(2, *[1] * (y.ndim - 1))
    ends = student.mean_N(starts, theta_s.repeat(2), torch.cat([upper, lower]), labels)
    above, below = ends.chunk(2)
    a, b = (over_sample(theta_s - end, y) for end in (upper, lower))
    derivative = (b * below - a * above) / over_sample(upper - lower, y)
    with torch.no_grad():
        target = teacher_N(teacher, y + (a * above + b * below) / 2, middle, label)
    sigma = student.sigma_data * middle.tan()
    return student.sigma_data**2 * l2(derivative, target), sigma


class PIDMap(Distillation):
    """The flow map's PID as a training method."""

    Settings = PIDMapSettings
    needs = "noise"
    student: FlowMapStudent
    student_evaluations = 2
    target_evaluations = 1

    def __init__(
        self, settings: PIDMapSettings, student: FlowMapStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`."""
        super().__init__(settings, student, teacher)
        self.teacher_evaluations = teacher.evaluations_per_call

    @classmethod
    def make_student(
        cls, settings: PIDMapSettings, teacher: Denoiser, network: nn.Module | None
    ) -> FlowMapStudent:
        """See `Distillation.make_student`."""
        return FlowMapStudent.from_teacher(teacher, network=network)

    def loss(self, batch: Batch) -> Losses:
        """Draw paths and angles for the batch and return its losses."""
        y, theta_s = self.starts(batch, self.settings.share_from_noise)
        low = self.student.theta_min
        theta = low + (theta_s - low) * batch.draws.uniform("train theta")
        loss, sigma = pid_map_loss(
            self.student,
            self.teacher,
            y,
            theta_s,
            theta,
            batch.label,
            step=self.settings.step or step_for(evaluation_dtype(y)),
        )
        scalars = {"residual": loss.detach().mean()}
        return Losses(normalised(loss, self.settings.normalise), sigma, scalars)

    @torch.no_grad()
    def starts(self, batch: Batch, share_from_noise: float) -> tuple[Tensor, Tensor]:
        """Where paths start: y (b, ...), without gradient, and theta (b,), float64.

        A share starts from noise at `sigma_max`, the others from the student's own points below.
        """
        student, draws, label = self.student, batch.draws, batch.label
        uniform = draws.uniform("train theta start")
        theta_s = torch.full_like(uniform, student.theta_max)
        y = student.to_y(self.noise(batch), theta_s)
        if share_from_noise == 1:
            return y, theta_s
        # Turns instead of draws: the sizes of the batches are known in advance.
        index = draws.first + torch.arange(draws.num, device=uniform.device).double()
        below = (index * share_from_noise).floor() == ((index + 1) * share_from_noise).floor()
        before, after = (
            math.floor(end * share_from_noise) for end in (draws.first, draws.first + draws.num)
        )
        # At least one, for FSDP needs every process to call the network equally often.
        num = max(1, draws.num - (after - before))
        rows = below.long().argsort(descending=True, stable=True)[:num]
        share = LOWEST_START + (1 - LOWEST_START) * uniform[rows]
        lower = student.theta_min + (student.theta_max - student.theta_min) * share
        labels = None if label is None else label[rows]
        moved = student.flow(y[rows], theta_s[rows], lower, labels)
        y[rows] = torch.where(over_sample(below[rows], moved) > 0, moved, y[rows])
        theta_s[rows] = torch.where(below[rows], lower, theta_s[rows])
        return y, theta_s

    def samples(self, batch: Batch, share_from_noise: float) -> Tensor:
        """Ends x0 (b, ...) of paths that start as in `loss`, with gradient in the last map only."""
        y, theta_s = self.starts(batch, share_from_noise)
        theta = torch.full_like(theta_s, self.student.theta_min)
        return self.student.to_x(self.student.flow(y, theta_s, theta, batch.label), theta)
