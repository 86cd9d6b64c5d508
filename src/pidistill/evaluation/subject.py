"""What is measured: a student beside its teacher, a teacher alone, or anybody's samples."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.evaluation.labels import Labels, even_labels
from pidistill.evaluation.sampling import (
    TEACHER_STEPS,
    Sampler,
    array_sampler,
    student_sampler,
    teacher_sampler,
)
from pidistill.evaluation.speed import measure_speed, measure_teacher_speed
from pidistill.ode import Solution
from pidistill.students.base import Student

SamplerOf = Callable[[int, Callable[[int], None]], Sampler]
"""A sampler by its seed, and what it calls after every batch with the number of samples in it."""


class Subject(NamedTuple):
    """What is measured."""

    sampler: SamplerOf
    """Its samples."""
    sample_shape: tuple[int, ...]
    """Of one sample as it is measured: of the image, where the model draws latents."""
    student: Student | None = None
    """The student that draws them, where it is one."""
    teacher: Denoiser | None = None
    """The teacher of that student, on the same device."""
    teacher_sampler: SamplerOf | None = None
    """The teacher's samples from the same noise."""
    decoder: nn.Module | None = None
    """What turns samples that are latents into images."""
    speed: Callable[[int], dict[str, float]] | None = None
    """Milliseconds a sample, for so many at once."""


def student_subject(
    student: Student,
    teacher: Denoiser | None = None,
    *,
    steps: int = 1,
    labels: Labels = even_labels,
    decoder: nn.Module | None = None,
    image_shape: tuple[int, ...] | None = None,
    batch_size: int = 256,
    solved: Solution | None = None,
) -> Subject:
    """A student beside its teacher.

    Args:
        student: The student.
        teacher: Its teacher, on the same device; None where it is not at hand.
        steps: Evaluations of the student a sample.
        labels: Whose labels samples have.
        decoder: What turns samples that are latents into images.
        image_shape: Shape of these images.
        batch_size: Samples evaluated at once.
        solved: The teacher's samples (see `teacher_samples`), where they are at hand.
    """

    def sampler(seed: int, on_batch: Callable[[int], None]) -> Sampler:
        return student_sampler(
            student,
            seed=seed,
            steps=steps,
            labels=labels,
            batch_size=batch_size,
            on_batch=on_batch,
        )

    of_teacher: SamplerOf | None = None
    if solved is not None:
        of_teacher = array_subject(solved, "the teacher's").sampler
    elif teacher is not None:
        of_teacher = teacher_subject(teacher, labels=labels, batch_size=batch_size).sampler
    return Subject(
        sampler,
        image_shape or student.sample_shape,
        student=student,
        teacher=teacher,
        teacher_sampler=of_teacher,
        decoder=decoder,
        speed=lambda num: measure_speed(student, teacher, num=num, steps=steps),
    )


def teacher_subject(
    teacher: Denoiser,
    *,
    steps: int = TEACHER_STEPS,
    solver: str = "heun",
    labels: Labels = even_labels,
    image_shape: tuple[int, ...] | None = None,
    batch_size: int = 256,
) -> Subject:
    """A teacher, its equation solved by `steps` nodes of a solver (see `ode.solve`).

    The other arguments are those of `student_subject`.
    """

    def sampler(seed: int, on_batch: Callable[[int], None]) -> Sampler:
        return teacher_sampler(
            teacher,
            seed=seed,
            steps=steps,
            solver=solver,
            labels=labels,
            batch_size=batch_size,
            on_batch=on_batch,
        )

    return Subject(
        sampler,
        image_shape or teacher.sample_shape,
        decoder=teacher.decoder,
        speed=lambda num: measure_teacher_speed(teacher, num=num, steps=steps, solver=solver),
    )


def array_subject(given: Solution, name: str) -> Subject:
    """Samples that are there already; `name` says which they are."""
    shape = tuple(given.x.shape[1:])
    return Subject(lambda seed, on_batch: array_sampler(given, name), shape)


def samples_subject(x: Tensor, name: str) -> Subject:
    """Anybody's samples `x` (n, *sample_shape), whose cost is not known."""
    return array_subject(Solution(x, 0), name)
