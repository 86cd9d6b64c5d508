"""What every method has in common: the batch it gets and the losses it returns."""

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import pydantic
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.data.noise import Draws
from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.student import Student


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


class MethodSettings(pydantic.BaseModel):
    """Settings of a method; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name in `pidistill.methods.METHODS`."""


class Method(abc.ABC):
    """A training method; see the package's docstring."""

    Settings: ClassVar[type[MethodSettings]]
    needs: ClassVar[Literal["noise", "images"]]
    teacher_evaluations: int
    """Teacher evaluations that one sample of one step costs."""
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
