"""The contract of a method: the parts it trains and the updates in each step.

A method is a class with `Settings`, `needs` and `build`; it holds a `student`, declares its `parts`
and yields the `updates` of each step. A method that trains only its student implements `loss`; the
defaults do the rest.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.methods.settings import MethodSettings, OptimizerSettings
from pidistill.noise import Draws
from pidistill.processes import ALONE, Processes
from pidistill.students.base import Student


@dataclasses.dataclass(frozen=True)
class Batch:
    """The slice of a training batch that one forward pass sees."""

    draws: Draws
    """The random numbers of these samples."""
    label: Tensor | None
    """Class labels (b,), int64, or None for an unconditional model."""
    x0: Tensor | None
    """Clean images (b, *sample_shape), for methods that need images."""


def noise_batch(draws: Draws, num_classes: int, device: torch.device) -> Batch:
    """The batch of a method that trains on noise alone, with labels drawn from `num_classes`."""
    label = draws.integers("train label", num_classes).to(device) if num_classes else None
    return Batch(draws, label, None)


@dataclasses.dataclass(frozen=True)
class Losses:
    """What a method returns for a batch."""

    loss: Tensor
    """The loss per sample, shape (b,); its mean is minimised."""
    sigma: Tensor
    """The noise level per sample, shape (b,)."""
    scalars: dict[str, Tensor]
    """Further values to log, each a detached scalar."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A module that a method trains."""

    name: str
    """Its name in logs and checkpoints; the student's is `student`."""
    module: nn.Module
    """The module; all of its parameters are trained."""
    optimizer: OptimizerSettings | None = None
    """Its optimizer settings; None uses the run config's."""
    averaged: bool = False
    """Whether to keep moving averages of its weights, at the run's `ema_rates`."""


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimizer step of one part."""

    part: str
    """The name of the part that takes the step; all others are frozen during it."""
    loss: Callable[[Batch], Losses]
    """The loss to minimise, called once per micro-batch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a method may know about its run."""

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
    """Progress of the work before the first step."""

    title: str
    """What is being done."""
    done: int
    total: int
    unit: str
    """What `done` and `total` count."""


class Method(abc.ABC):
    """A training method; see the module docstring."""

    Settings: ClassVar[type[MethodSettings]]
    """The settings; the default of `name` is the method's name."""
    needs: ClassVar[Literal["noise", "images", "pairs"]]
    """What it trains on: noise alone, images, or samples that the teacher makes first."""
    teacher_evaluations: int
    """Teacher evaluations per sample and step."""
    teacher_evaluations_before: int = 0
    """Total teacher evaluations before the first step."""
    student_evaluations: int = 1
    """Student evaluations with gradient per sample and step; a jvp counts as two."""
    target_evaluations: int = 0
    """Evaluations without gradient, of the student or a copy that follows it, per sample and
    step."""
    rows: Tensor | None = None
    """The images that are trained on, as indices; None means all."""
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
        """Build the student and the method that trains it.

        Args:
            settings: An instance of the class's `Settings`.
            teacher: The teacher, for a distillation method.
            data: The images, for a method that needs them.
            network: The student's network; None copies the teacher's.

        Raises:
            PidistillError: An argument that this method needs is None.
        """

    @abc.abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """The student's losses on `batch`, with gradients to its parameters only."""

    @abc.abstractmethod
    def preview(self, num: int) -> Tensor:
        """Draw `num` samples (num, *sample_shape) for a preview."""

    def validate(self) -> dict[str, Any]:
        """JSON values that say how good the student is, for the log at a checkpoint."""
        return {}

    def parts(self) -> list[Part]:
        """All trained parts, the student first."""
        return [Part("student", self.student, averaged=True)]

    def updates(self, step: int) -> Iterator[Update]:
        """The updates of step `step`, in order; each sees the effect of those before it."""
        yield Update("student", self.loss)

    def to(self, device: Any) -> None:
        """Move all of the method's modules to `device`."""
        for value in vars(self).values():
            if isinstance(value, nn.Module):
                value.to(device)

    def networks(self) -> list[nn.Module]:
        """The raw networks of all of the method's modules, each once."""
        held = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        found = [getattr(module, "network", None) for value in held for module in value.modules()]
        return list({id(net): net for net in found if isinstance(net, nn.Module)}.values())

    def prepare(self, run: Run) -> Iterator[Preparation]:
        """Do the work needed before the first step, yielding progress.

        It may be abandoned at any `yield`; the next call resumes from what is on disk. Each of
        `run.processes` calls it and does its share.
        """
        return iter(())

    def rehearse(self, run: Run, num: int) -> int:
        """Prepare just enough for steps of `num` samples, in memory; for estimates.

        Returns:
            The teacher evaluations used.
        """
        return 0

    def teacher_backwards(self, done: int, max_train_steps: int) -> float:
        """Backward passes through the teacher per sample, summed over the first `done` steps.

        `teacher_evaluations` counts forward evaluations only; a backward pass costs about two.
        """
        return 0.0

    def start_phase(self, step: int, max_train_steps: int) -> bool:
        """Called before every step: whether a new phase of training begins at `step`.

        If so, the optimizers and the averages restart from the current weights.
        """
        return False

    def phase(self, max_train_steps: int) -> tuple[int, int]:
        """The current phase `[first, end)`, which the learning-rate schedule spans.

        Steps are counted from 0.
        """
        return 0, max_train_steps

    def after_step(self, step: int) -> None:
        """Called after all updates of step `step`, to update whatever follows the student."""
        return

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors to checkpoint besides those of the parts."""
        return {}

    def state_values(self) -> dict[str, Any]:
        """JSON values to checkpoint."""
        return {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore `state_tensors` and `state_values`, after the weights of the parts."""
        return


class Distillation(Method):
    """A method that trains a student against a teacher; implement `make_student` and `loss`."""

    student: Student

    def __init__(self, settings: Any, student: Student, teacher: Denoiser) -> None:
        """Train `student` against `teacher`."""
        self.settings = settings
        self.student = student
        self.teacher = teacher

    @classmethod
    @abc.abstractmethod
    def make_student(cls, settings: Any, teacher: Denoiser, network: nn.Module | None) -> Student:
        """The untrained student; arguments as in `build`."""

    @classmethod
    def build(
        cls,
        settings: Any,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> "Distillation":
        """Build the student from the teacher, then the method; see `Method.build`."""
        if teacher is None:
            raise PidistillError(f"{settings.name} distils a teacher; set 'teacher'")
        if cls.needs == "images":
            require_images(settings.name, teacher, data)
        return cls(settings, cls.make_student(settings, teacher, network), teacher)

    def noise(self, batch: Batch) -> Tensor:
        """The starting noise of a batch, shape (b, *sample_shape); repeated calls agree."""
        z = self.teacher.sigma_max * batch.draws.normal("train z", self.teacher.sample_shape)
        return z.to(next(self.student.parameters()))

    def preview(self, num: int) -> Tensor:
        """Student samples in the number of steps that it is trained for."""
        return self.student.generate(num, seed=0, steps=self.student.num_steps).x


def require_images(name: str, teacher: Denoiser, data: Dataset | None) -> None:
    """Raise `PidistillError` unless `data` match the teacher's shape and classes."""
    if data is None:
        raise PidistillError(f"{name} trains on images; set 'data', for example to 'digits'")
    shape = data.sample_shape
    if shape != teacher.sample_shape:
        raise PidistillError(
            f"data {data.name} has images of shape {shape}; the teacher expects shape "
            f"{teacher.sample_shape}"
        )
    if teacher.num_classes not in (0, data.num_classes):
        raise PidistillError(
            f"data {data.name} has {data.num_classes} classes; the teacher has "
            f"{teacher.num_classes}"
        )
