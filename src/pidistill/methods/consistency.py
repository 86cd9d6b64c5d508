r"""Consistency distillation (Song et al., ICML 2023, arXiv 2303.01469, algorithm 2).

The student maps every point of a trajectory to its end. From a noisy image, $x_i = x_0 + \sigma_i
\epsilon$, the teacher takes one solver step to $\hat{x}_{i+1}$ at the next node of the rho-7 grid;
the target is a moving average of the student, evaluated there:

$$\mathrm{distance}\left(f(x_i, \sigma_i),\; \mathrm{sg}[f^-(\hat{x}_{i+1}, \sigma_{i+1})]\right)$$

$f^-$ has the moving average of the student's weights. At the last node $f(x, \sigma_{min}) = x$ by
construction (`ConsistencyStudent`), and the solution propagates from there to higher noise levels.
"""

import copy
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, over_sample
from pidistill.distance import Distance, DistanceName, distance_for
from pidistill.methods.base import (
    Batch,
    Distillation,
    Losses,
)
from pidistill.methods.settings import MethodSettings
from pidistill.ode import SOLVERS, Solver
from pidistill.schedule import karras_sigmas
from pidistill.sharding import whole
from pidistill.storage import load_weights
from pidistill.students.consistency import ConsistencyStudent


class ConsistencySettings(MethodSettings):
    """Settings of consistency distillation."""

    name: Literal["consistency"] = "consistency"
    num_nodes: int = pydantic.Field(default=18, ge=2, le=10**6)
    """Number of nodes N of the rho-7 grid; published: 18 for CIFAR-10, 40 for ImageNet 64x64."""
    mu: float = pydantic.Field(default=0.95, ge=0, lt=1)
    """Decay rate of the target's moving average; published: 0.95 for ImageNet 64x64. With 0 the
    target is the student itself, detached."""
    solver: Literal["heun", "euler"] = "heun"
    """The teacher's solver for the step from one node to the next; published: heun."""
    distance: DistanceName = "l2"
    """Distance between student and target (`pidistill.distance`); published: LPIPS and l2."""


def consistency_loss(
    student: ConsistencyStudent,
    target: ConsistencyStudent,
    teacher: Denoiser,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    label: Tensor | None,
    *,
    solver: Solver,
    distance: Distance,
) -> Tensor:
    """The loss per sample, shape (b,), with equal weight at all noise levels.

    Args:
        student: The student.
        target: The student with averaged weights.
        teacher: The teacher.
        x: Noisy images, shape (b, *sample_shape).
        sigma: Their noise levels, nodes of the grid, shape (b,), float64.
        sigma_next: The next nodes below, shaped like `sigma`.
        label: Class labels (b,), or None.
        solver: The teacher's solver, which takes one step.
        distance: The distance between the student and its target.
    """
    prediction = student(x, sigma, label)
    with torch.no_grad():
        x_next = solver.step(teacher, x, sigma, sigma_next, label).x
        end = target(x_next, sigma_next, label)
    return distance(prediction, end)


class Consistency(Distillation):
    """Consistency distillation as a training method; it holds the target network."""

    Settings = ConsistencySettings
    needs = "images"
    target_evaluations = 1
    student: ConsistencyStudent

    def __init__(
        self, settings: ConsistencySettings, student: ConsistencyStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher`; the target starts as a copy of the student."""
        super().__init__(settings, student, teacher)
        self.target = copy.deepcopy(student).requires_grad_(False)
        self.solver = SOLVERS[settings.solver]
        self.distance = distance_for(settings.distance, teacher.sample_shape)
        # A step of a solver of order k calls the denoiser k times.
        self.teacher_evaluations = self.solver.order * teacher.evaluations_per_call

    @classmethod
    def make_student(
        cls, settings: ConsistencySettings, teacher: Denoiser, network: nn.Module | None
    ) -> ConsistencyStudent:
        """See `Distillation.make_student`."""
        return ConsistencyStudent.from_teacher(teacher, network=network)

    def loss(self, batch: Batch) -> Losses:
        """Add noise to the images at randomly drawn nodes and return their losses."""
        if batch.x0 is None:
            raise ValueError("the batch has no images; consistency distillation trains on data")
        num_nodes, teacher = self.settings.num_nodes, self.teacher
        index = batch.draws.integers("train node", num_nodes - 1)
        nodes = karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max, device=index.device)
        sigma, sigma_next = nodes[index], nodes[index + 1]
        eps = batch.draws.normal("train eps", self.student.sample_shape).to(batch.x0)
        loss = consistency_loss(
            self.student,
            self.target,
            self.teacher,
            batch.x0 + over_sample(sigma, batch.x0) * eps,
            sigma,
            sigma_next,
            batch.label,
            solver=self.solver,
            distance=self.distance,
        )
        return Losses(loss, sigma, {})

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the target towards the student."""
        torch._foreach_lerp_(
            list(self.target.parameters()),
            [whole(p.detach()) for p in self.student.parameters()],
            1 - self.settings.mu,
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """The target's weights."""
        return dict(self.target.state_dict())

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore the target's weights."""
        load_weights(self.target, tensors, "the checkpoint's target")
