"""The base class of students: a network, its noise levels, and sampling by seed and index."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.noise import Draws, initial_noise
from pidistill.numerics import precise
from pidistill.ode import Solution
from pidistill.precondition import EDMPrecondition, Precondition
from pidistill.schedule import require_sigma_range
from pidistill.students.labels import labels_for

_Student = TypeVar("_Student", bound="Student")


class Student(nn.Module):
    """Base class: a network that maps starting noise `z` to a sample, without its teacher."""

    num_steps: int = 1
    """Network evaluations per sample that it was trained for."""
    any_steps: bool = False
    """Whether it can sample in any number of evaluations."""
    refines: bool = False
    """Whether it can refine samples, by `refine`."""

    class_names: tuple[str, ...] = ()
    """What the labels mean, in their order; empty if that is not known."""

    def __init__(
        self,
        network: nn.Module,
        precondition: Precondition,
        *,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
    ) -> None:
        """Wrap a raw network.

        Args:
            network: Called as `network(u, c_noise, label)` (see `pidistill.networks`).
            precondition: The teacher's; the student inherits its noise levels.
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            source: Where the student comes from, for display.

        Raises:
            PidistillError: The noise levels are out of order.
        """
        super().__init__()
        require_sigma_range(precondition.sigma_min, precondition.sigma_max)
        self.network = network
        self.precondition = precondition
        self.sigma_min = precondition.sigma_min
        self.sigma_max = precondition.sigma_max
        self.sigma_data = precondition.sigma_data
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes
        self.source = source

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The student at noise `z` (b, ...) and noise levels `sigma` (b,); see the subclass."""
        raise NotImplementedError

    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """Draw samples from the starting noise `z` (b, ...) in `steps` evaluations.

        Args:
            z: Starting noise at `sigma_max`.
            steps: Evaluations per sample.
            label: Class labels (b,), int64, or None.
            draws: The random numbers of these samples, for a student that adds noise between
                evaluations; None means those of seed 0, starting at sample 0.

        Raises:
            PidistillError: This student cannot sample in `steps` evaluations.
        """
        raise NotImplementedError

    def refine(
        self, x: Tensor, times: int, *, label: Tensor | None = None, draws: Draws | None = None
    ) -> Solution:
        """Improve samples `x` (b, ...) by `times` further evaluations.

        Other arguments as in `sample`. Only for students with `refines`.
        """
        raise NotImplementedError

    def sample_and_refine(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        refine: int = 0,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """`sample` in `steps` evaluations, then `refine` by further ones; arguments as there."""
        require_refine(self, refine)
        x, nfe = self.sample(z, steps=steps, label=label, draws=draws)
        if refine:
            x, more = self.refine(x, refine, label=label, draws=draws)
            nfe += more
        return Solution(x, nfe)

    @torch.no_grad()
    def generate(
        self,
        num: int,
        *,
        seed: int,
        steps: int = 1,
        refine: int = 0,
        label: int | Tensor | None = None,
        first: int = 0,
        batch_size: int = 256,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Solution:
        """Draw `num` samples; sample i depends only on `seed` and i.

        Args:
            num: Number of samples.
            seed: The seed.
            steps: Evaluations per sample, before any refinement.
            refine: Further evaluations per sample, which refine it (`Student.refine`).
            label: One label for all, labels (num,), or None; sample i then has label
                `i % num_classes`.
            first: Index i of the first sample, for drawing part of a longer list.
            batch_size: Samples evaluated at once; affects memory and speed, not the samples.
            on_batch: Called after every batch with its number of samples.

        Returns:
            Samples of shape (num, *sample_shape), float32, on the student's device.

        Raises:
            PidistillError: `num` or `batch_size` is not positive, the labels do not fit, or the
                student cannot sample in `steps` evaluations or cannot refine, or a sample is not
                finite.
        """
        return sample_in_batches(
            self,
            lambda z, part, draws: self.sample_and_refine(
                z, steps=steps, refine=refine, label=part, draws=draws
            ),
            num,
            seed=seed,
            label=label,
            first=first,
            batch_size=batch_size,
            on_batch=on_batch,
        )

    def takes(self, steps: int) -> bool:
        """Whether it can sample in `steps` evaluations."""
        return steps >= 1 if self.any_steps else steps == self.num_steps

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every student, as JSON values."""
        return {}

    @classmethod
    def from_teacher(
        cls: type[_Student],
        teacher: Denoiser,
        *,
        network: nn.Module | None = None,
        **options: Any,
    ) -> _Student:
        """Build a student with a copy of the teacher's network.

        Args:
            teacher: The teacher; the student inherits its noise levels, shape and labels.
            network: A network to use instead of the copy, with EDM's preconditioning. Required for
                a teacher without a network, such as a closed-form mixture.
            options: Constructor arguments beyond those of every student.

        Raises:
            PidistillError: The teacher has no network to copy and `network` is None.
        """
        precondition: Precondition = EDMPrecondition(
            sigma_min=teacher.sigma_min,
            sigma_max=teacher.sigma_max,
            sigma_data=teacher.sigma_data,
        )
        if network is None:
            parts = teacher.network_to_copy()
            if parts is None:
                raise PidistillError(
                    f"teacher {teacher.source} has no network for a student to copy; pass one"
                )
            network, precondition = copy.deepcopy(parts[0]), parts[1]
        student = cls(
            network.requires_grad_(True).eval(),  # published: no dropout in the student
            precondition,
            sample_shape=teacher.sample_shape,
            num_classes=teacher.num_classes,
            source=f"distilled from {teacher.source}",
            **options,
        )
        student.class_names = teacher.class_names
        return student


def require_refine(model: Denoiser | Student, refine: int) -> None:
    """Raise `PidistillError` unless `model` can spend `refine` evaluations on refinement."""
    if refine < 0:
        raise PidistillError(f"refine is {refine}; expected 0 or more evaluations")
    if refine > 0 and not (isinstance(model, Student) and model.refines):
        kind = "teacher" if isinstance(model, Denoiser) else type(model).__name__
        raise PidistillError(
            f"refine is {refine}, but a {kind} does not refine its samples; only a flow map does"
        )


@precise()
def sample_in_batches(
    model: Denoiser | Student,
    sample: Callable[[Tensor, Tensor | None, Draws], Solution],
    num: int,
    *,
    seed: int,
    label: int | Tensor | None,
    first: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> Solution:
    """Draw `num` samples of `model`, a student or a solved teacher.

    `sample` draws one batch from its noise, labels and random numbers; the other arguments and the
    errors are those of `Student.generate`.
    """
    if num < 1:
        raise PidistillError(f"num is {num}; expected at least 1 sample")
    if batch_size < 1:
        raise PidistillError(f"batch_size is {batch_size}; expected at least 1")
    labels = labels_for(model, num, label, first)
    batches, nfe = [], 0
    for done in range(0, num, batch_size):
        count = min(batch_size, num - done)
        z = initial_noise(model, count, seed=seed, first=first + done)
        part = None if labels is None else labels[done : done + count].to(z.device)
        x, nfe = sample(z, part, Draws(seed, first + done, count))
        require_finite(x, model.source, first + done)
        batches.append(x)
        on_batch(count)
    return Solution(torch.cat(batches), nfe)


def require_finite(x: Tensor, source: str, first: int = 0) -> None:
    """Raise `PidistillError` unless samples `x` (n, ...) are finite; they begin with `first`.

    Samples are checked where they leave a model, since rounding to 8 bits hides what is not finite.
    """
    finite = x.flatten(1).isfinite().all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise PidistillError(
            f"{len(bad)} of {len(x)} samples of {source} are not finite, the first being sample "
            f"{first + bad[0]}; did its training diverge, or its numbers overflow?"
        )
