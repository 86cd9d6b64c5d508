r"""Progressive distillation (Salimans & Ho, ICLR 2022, arXiv 2202.00512) on the rho-7 grid.

In the form of Song et al. 2023. A student with N Euler steps learns from a teacher with 2 N: from a
noisy image, $x = x_0 + \sigma \epsilon$, the teacher takes two Euler steps of half the length, from
$\sigma$ via $\sigma'$ to $\sigma''$ (each half a node in the index of the grid). The student, a
denoiser, regresses on the $\tilde{x}$ for which a single Euler step ends at the same point:

$$\mathrm{distance}\left(D(x, \sigma),\; \mathrm{sg}[\tilde{x}]\right)$$

After each round the student becomes the teacher and N is halved, until N reaches `end_steps`.
"""

import copy
import math
from collections.abc import Callable
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
from pidistill.schedule import sigma_at
from pidistill.sharding import load_whole, whole_tensors
from pidistill.storage import load_weights
from pidistill.students.euler import EulerStudent, euler_step

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "truncated-snr": lambda sigma: (sigma**-2).clamp(min=1),
}


class ProgressiveSettings(MethodSettings):
    """Settings of progressive distillation."""

    name: Literal["progressive"] = "progressive"
    start_steps: int = pydantic.Field(default=64, ge=2, le=2**20)
    """Euler steps of the first teacher, a power of two; the first student takes half as many."""
    end_steps: int = pydantic.Field(default=1, ge=1)
    """Euler steps of the last student, a smaller power of two; published: 1."""
    weight: Literal["uniform", "truncated-snr"] = "uniform"
    """Weight of the loss by noise level: uniform (Song et al. 2023), or max(1, 1 / sigma^2)
    (Salimans & Ho 2022)."""
    distance: DistanceName = "l2"
    """Distance between student and target (`pidistill.distance`)."""

    @pydantic.field_validator("start_steps", "end_steps")
    @classmethod
    def _power_of_two(cls, steps: int) -> int:
        if steps & (steps - 1):
            raise ValueError(f"{steps} is not a power of two")
        return steps

    @pydantic.field_validator("end_steps")
    @classmethod
    def _fewer(cls, end_steps: int, info: pydantic.ValidationInfo) -> int:
        if end_steps >= info.data.get("start_steps", math.inf):
            raise ValueError(f"not less than start_steps, {info.data['start_steps']}")
        return end_steps


def two_step_target(
    teacher: Denoiser,
    x: Tensor,
    sigma: Tensor,
    sigma_middle: Tensor,
    sigma_next: Tensor,
    label: Tensor | None,
) -> Tensor:
    r"""The denoiser output whose single Euler step ends where two steps of the teacher end.

    With the teacher's $D_1$ at $\sigma$ and $D_2$ at $\sigma'$, `x` cancels:

    $$\tilde{x} = \frac{\sigma'' (\sigma - \sigma')}{\sigma' (\sigma - \sigma'')} D_1
    + \frac{\sigma (\sigma' - \sigma'')}{\sigma' (\sigma - \sigma'')} D_2$$

    The weights sum to 1.

    Args:
        teacher: The teacher.
        x: Noisy images, shape (b, *sample_shape).
        sigma: Their noise levels, shape (b,), float64.
        sigma_middle: Where the first step ends, shaped like `sigma`.
        sigma_next: Where the second step ends, shaped like `sigma`.
        label: Class labels (b,), or None.

    Returns:
        Clean samples, shaped like `x`.
    """
    first = teacher(x, sigma.to(x), label)
    x_middle = euler_step(x, first, sigma, sigma_middle)
    second = teacher(x_middle, sigma_middle.to(x), label)
    share = sigma_next * (sigma - sigma_middle) / (sigma_middle * (sigma - sigma_next))
    return over_sample(share, x) * first + over_sample(1 - share, x) * second


def progressive_loss(
    student: EulerStudent,
    teacher: Denoiser,
    x0: Tensor,
    eps: Tensor,
    index: Tensor,
    label: Tensor | None,
    *,
    distance: Distance,
) -> tuple[Tensor, Tensor]:
    """The loss per sample, unweighted.

    Args:
        student: A student with `student.num_steps` steps.
        teacher: The teacher, which takes two steps for each of the student's.
        x0: Images, shape (b, *sample_shape).
        eps: Standard normal noise, shaped like `x0`.
        index: The student's step, in 0 .. num_steps - 1, shape (b,), int64.
        label: Class labels (b,), or None.
        distance: The distance between the student and its target.

    Returns:
        The losses and their noise levels, both of shape (b,).
    """
    sigma, sigma_middle, sigma_next = (
        sigma_at((index.double() + part) / student.num_steps, teacher.sigma_min, teacher.sigma_max)
        for part in (0, 0.5, 1)
    )
    x = x0 + over_sample(sigma, x0) * eps
    with torch.no_grad():
        target = two_step_target(teacher, x, sigma, sigma_middle, sigma_next, label)
    return distance(student(x, sigma, label), target), sigma


class Progressive(Distillation):
    """Progressive distillation as a training method; it tracks the current round."""

    Settings = ProgressiveSettings
    needs = "images"
    student: EulerStudent

    def __init__(
        self, settings: ProgressiveSettings, student: EulerStudent, teacher: Denoiser
    ) -> None:
        """Train `student` against `teacher` in the first round, then against its earlier self."""
        super().__init__(settings, student, teacher)
        self.distance = distance_for(settings.distance, teacher.sample_shape)
        self.weight = WEIGHTS[settings.weight]
        self.first_step = 0
        self.promoted = copy.deepcopy(student)  # becomes the teacher after a round
        self.teacher_evaluations = 2 * teacher.evaluations_per_call

    @classmethod
    def make_student(
        cls, settings: ProgressiveSettings, teacher: Denoiser, network: nn.Module | None
    ) -> EulerStudent:
        """See `Distillation.make_student`."""
        return EulerStudent.from_teacher(
            teacher, network=network, num_steps=settings.start_steps // 2
        )

    def loss(self, batch: Batch) -> Losses:
        """Add noise to the images at randomly drawn nodes of the round's grid."""
        if batch.x0 is None:
            raise ValueError("the batch has no images; progressive distillation trains on data")
        loss, sigma = progressive_loss(
            self.student,
            self.teacher,
            batch.x0,
            batch.draws.normal("train eps", self.student.sample_shape).to(batch.x0),
            batch.draws.integers("train step", self.student.num_steps),
            batch.label,
            distance=self.distance,
        )
        scalars = {"student_steps": torch.full_like(loss[0], self.student.num_steps)}
        return Losses(loss * self.weight(sigma).to(loss), sigma, scalars)

    def phase(self, max_train_steps: int) -> tuple[int, int]:
        """The current round; the remaining rounds divide the remaining steps evenly."""
        rounds_left = (self.student.num_steps // self.settings.end_steps).bit_length()
        length = (max_train_steps - self.first_step) // rounds_left
        return self.first_step, self.first_step + length

    def start_phase(self, step: int, max_train_steps: int) -> bool:
        """At the end of a round, make the student the teacher and halve its steps.

        If the run has fewer steps than rounds, rounds without a training step are skipped.
        """
        end = self.settings.end_steps
        if self.student.num_steps == end or step < self.phase(max_train_steps)[1]:
            return False
        if step > self.first_step:
            self._promote()
        while self.student.num_steps > end and step >= self.phase(max_train_steps)[1]:
            self.student.num_steps //= 2
            self.first_step = step
        return True

    def _promote(self) -> None:
        """Make a copy of the student the teacher, gathering its weights if FSDP sharded them."""
        load_whole(self.promoted, whole_tensors(self.student.state_dict(), keep=True))
        self.teacher = self.promoted.as_denoiser().eval().requires_grad_(False)
        self.teacher_evaluations = 2

    def state_tensors(self) -> dict[str, Tensor]:
        """The weights of the promoted teacher, after the first round."""
        return dict(self.promoted.state_dict()) if self.first_step else {}

    def state_values(self) -> dict[str, Any]:
        """The current round: the student's steps and the first training step."""
        return {"num_steps": self.student.num_steps, "first_step": self.first_step}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Resume in the checkpoint's round."""
        self.student.num_steps, self.first_step = values["num_steps"], values["first_step"]
        if tensors:
            self._promote()
            load_weights(self.promoted, tensors, "the checkpoint's teacher")
