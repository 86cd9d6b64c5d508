"""The contract of a method: the parts it trains and the updates of a step.

A method is a class with `Settings`, `needs` and `build`; it holds a `student`, declares its `parts`
and yields the `updates` of each step. A method that trains nothing but its student implements
`loss`, and the defaults do the rest.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

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
class Part:
    """A module that a method trains."""

    name: str
    """Its name in logs and checkpoints; the student's is `student`."""
    module: nn.Module
    """The module, all of whose parameters are trained."""
    optimizer: OptimizerSettings | None = None
    """How it is optimised; None follows the run config."""
    averaged: bool = False
    """Whether moving averages of its weights are kept, at the run's `ema_rates`."""


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimizer step of one part."""

    part: str
    """The name of the part that takes the step; all other parts are frozen meanwhile."""
    loss: Callable[[Batch], Losses]
    """What is minimised. It is called once for every micro-batch."""


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
    """A training method; see the module's docstring."""

    Settings: ClassVar[type[MethodSettings]]
    """The settings, with the method's name as the default of `name`."""
    needs: ClassVar[Literal["noise", "images", "pairs"]]
    """What it trains on: noise alone; images; or samples that the teacher makes first."""
    teacher_evaluations: int
    """Teacher evaluations that one sample of one step costs."""
    teacher_evaluations_before: int = 0
    """Teacher evaluations that are spent before the first step, in all."""
    student_evaluations: int = 1
    """Student evaluations with a gradient that one sample of one step costs; a jvp counts twice."""
    target_evaluations: int = 0
    """Those without a gradient, of the student or of a copy that follows it."""
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

    def parts(self) -> list[Part]:
        """Everything that is trained, the student first."""
        return [Part("student", self.student, averaged=True)]

    def updates(self, step: int) -> Iterator[Update]:
        """The updates of optimizer step `step`, in order; each sees what those before it did."""
        yield Update("student", self.loss)

    def to(self, device: Any) -> None:
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

        Then the optimizers and the averages start afresh from the weights.
        """
        return False

    def phase(self, max_train_steps: int) -> tuple[int, int]:
        """First step of the current phase and the step after its last: the learning rate's span.

        Steps are counted from 0.
        """
        return 0, max_train_steps

    def after_step(self, step: int) -> None:
        """Called after all updates of step `step`: move whatever follows the student."""
        return

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors beside those of the parts that a checkpoint has to keep."""
        return {}

    def state_values(self) -> dict[str, Any]:
        """JSON values that a checkpoint has to keep."""
        return {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take what `state_tensors` and `state_values` gave, after the weights of the parts."""
        return


class Distillation(Method):
    """A method that trains a student against a teacher; it implements `make_student` and `loss`."""

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
        """Make the student from the teacher, and the method; see `Method.build`."""
        if teacher is None:
            raise PidistillError(f"{settings.name} distils a teacher; name one with 'teacher'")
        if cls.needs == "images":
            require_images(settings.name, teacher, data)
        return cls(settings, cls.make_student(settings, teacher, network), teacher)

    def preview(self, num: int) -> Tensor:
        """Samples of the student in the steps that it is trained for."""
        return self.student.generate(num, seed=0, steps=self.student.num_steps).x


def require_images(name: str, teacher: Denoiser, data: Dataset | None) -> None:
    """Raise `PidistillError` unless `data` are images that `teacher` can judge."""
    if data is None:
        raise PidistillError(f"{name} trains on images; name them with 'data', such as 'digits'")
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
