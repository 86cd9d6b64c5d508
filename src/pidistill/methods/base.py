"""What every method has in common: the batch it gets and the losses it returns."""

import abc
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.methods.settings import MethodSettings as MethodSettings
from pidistill.noise import Draws
from pidistill.processes import ALONE, Processes
from pidistill.students.base import Student


@dataclasses.dataclass(frozen=True)
class Batch:
    """The part of a training batch that one forward pass sees."""

    draws: Draws
    """The random numbers of these samples."""
    label: Tensor | None
    """Class labels (b,), int64, or None for an unconditional model."""
    x0: Tensor | None
    """Clean images (b, *sample_shape), for a method that needs images."""


@dataclasses.dataclass(frozen=True)
class Losses:
    """What a method returns for a batch."""

    loss: Tensor
    """The loss of each sample, shape (b,), whose mean is minimised."""
    sigma: Tensor
    """The noise level of each sample, shape (b,)."""
    scalars: dict[str, Tensor]
    """More numbers to log, each a detached scalar."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a method may know of the run that it trains in."""

    folder: Path
    """The run folder."""
    teacher: str | None
    """The teacher's spec."""
    seed: int = 0
    """The run's seed."""
    processes: Processes = ALONE
    """The processes that share the work."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How far the work before the first step has come."""

    title: str
    """What is being done."""
    done: int
    total: int
    unit: str
    """What is counted."""


class Method(abc.ABC):
    """A training method; see the package's docstring."""

    Settings: ClassVar[type[MethodSettings]]
    needs: ClassVar[Literal["noise", "images", "pairs"]]
    teacher_evaluations: int
    """Teacher evaluations that one sample of one step costs."""
    teacher_evaluations_before: int = 0
    """Teacher evaluations that were spent before the first step, over all."""
    student_evaluations: int = 1
    """Student evaluations with a gradient that one sample of one step costs; a jvp counts twice."""
    target_evaluations: int = 0
    """Those without one, of the student or of a copy that follows it."""
    student: Student | PreconditionedDenoiser

    @classmethod
    @abc.abstractmethod
    def build(
        cls,
        settings: Any,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> "Method":
        """Make the student and the method that trains it.

        Args:
            settings: An instance of the class's `Settings`.
            teacher: The teacher, for a distillation method.
            data: The images, for a method that needs them.
            network: The student's network; None copies the teacher's.

        Raises:
            PidistillError: Something that this method needs is None.
        """

    @abc.abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """The losses of the student on `batch`, with gradients to its parameters only."""

    @abc.abstractmethod
    def preview(self, num: int) -> Tensor:
        """Draw `num` samples (num, *sample_shape) to look at."""

    def to(self, device: torch.device) -> None:
        """Move every network that the method holds to `device`."""
        for value in vars(self).values():
            if isinstance(value, nn.Module):
                value.to(device)

    def networks(self) -> list[nn.Module]:
        """The raw networks of everything that the method holds, each once."""
        held = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        found = [getattr(module, "network", None) for value in held for module in value.modules()]
        return list({id(net): net for net in found if isinstance(net, nn.Module)}.values())

    def prepare(self, run: Run) -> Iterator[Preparation]:
        """Do what has to be done before the first step, yielding as it goes on.

        It may be left at any `yield`, and goes on from what is on the disk when it is called again.
        Each of `run.processes` calls it, for its part of the work.
        """
        return iter(())

    def rehearse(self, run: Run, num: int) -> int:
        """Prepare just enough for steps of `num` samples, in memory; for estimates.

        Returns:
            The teacher evaluations that it took.
        """
        return 0

    def start_phase(self, step: int, max_train_steps: int) -> bool:
        """Asked before every step: whether a new phase of training begins with step `step`.

        Then the optimizer and the averages start afresh from the student's weights.
        """
        return False

    def phase(self, max_train_steps: int) -> tuple[int, int]:
        """First step of the phase under way and the step after its last: the learning rate's span.

        Steps are counted from 0.
        """
        return 0, max_train_steps

    def after_step(self, step: int) -> None:
        """Called after optimizer step `step`: move whatever follows the student."""
        return

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors beside the student's that a checkpoint has to keep."""
        return {}

    def state_values(self) -> dict[str, Any]:
        """JSON values that a checkpoint has to keep."""
        return {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take what `state_tensors` and `state_values` gave, after the student's weights."""
        return


class Distillation(Method):
    """A method that trains a student against a teacher."""

    student: Student

    def __init__(self, settings: Any, student: Student, teacher: Denoiser) -> None:
        """Train `student` against `teacher`."""
        self.settings = settings
        self.student = student
        self.teacher = teacher

    def preview(self, num: int) -> Tensor:
        """Samples of the student in the steps that it is trained for."""
        return self.student.generate(num, seed=0, steps=self.student.num_steps).x


def require_teacher(name: str, teacher: Denoiser | None) -> Denoiser:
    """The teacher of the method `name`.

    Raises `PidistillError` when there is none.
    """
    if teacher is None:
        raise PidistillError(f"{name} distils a teacher; name one with 'teacher'")
    return teacher


def require_images(name: str, teacher: Denoiser, data: Dataset | None) -> None:
    """Raise `PidistillError` unless `data` are images that `teacher` can judge."""
    if data is None:
        raise PidistillError(
            f"{name} trains on images; name them with --data, such as --data digits"
        )
    shape = tuple(data.images.shape[1:])
    if shape != teacher.sample_shape:
        raise PidistillError(
            f"data {data.name} holds images of shape {shape}; the teacher's are of shape "
            f"{teacher.sample_shape}"
        )
    if teacher.num_classes not in (0, data.num_classes):
        raise PidistillError(
            f"data {data.name} has {data.num_classes} classes; the teacher has "
            f"{teacher.num_classes}"
        )
