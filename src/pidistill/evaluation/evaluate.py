"""The metrics of a student: distance to its teacher's solution, Frechet distance, speed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.evaluation.features import features_for
from pidistill.evaluation.measures import error_values, gather_evidence, metrics_of
from pidistill.evaluation.protocol import Terms
from pidistill.evaluation.reference import Reference, ReferenceData, collect_reference
from pidistill.evaluation.subject import student_subject
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.ode import Solution
from pidistill.students.base import Student


def reference_statistics(x: Tensor, name: str = "samples") -> Reference | None:
    """Prepare reference samples (n, *sample_shape), or None where no feature network suits.

    `name` is that of a data set, where they are one.
    """
    network = features_for(tuple(x.shape[1:]), name)
    if network is None:
        return None
    data = ReferenceData(name, x, None, None)
    summary = collect_reference(data, network, ["statistics", "split_half"])
    return Reference(name, network, summary)


def evaluate(
    student: Student,
    *,
    teacher: Denoiser | None,
    reference: Reference | None,
    num: int,
    seed: int,
    solved: Solution | None = None,
    steps: int = 1,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measure a student: Frechet distance, error and speed; what cannot be computed is absent.

    Args:
        student: The student.
        teacher: Its teacher, for the error and the comparison of speed; None leaves them out.
        reference: Reference samples, for Frechet distances; None leaves them out.
        num: Number of samples, of student and teacher.
        seed: Seed of the noise, the same for student and teacher.
        solved: The teacher's samples of that noise (`teacher_samples`), where they are at hand.
        steps: Evaluations of the student a sample.
        batch_size: Samples evaluated at once.
        on_batch: Called after every batch with its size; student and teacher both count.

    Returns:
        The metrics by name, as JSON values.
    """
    subject = student_subject(student, teacher, steps=steps, batch_size=batch_size, solved=solved)
    features = ("fid",) if reference is not None else ()
    terms = Terms(
        num=num,
        error_num=num,
        names=features,
        network=reference.network if reference is not None else None,
        on_batch=on_batch,
    )
    names = (*features, *(("error",) if teacher is not None else ()), "speed")
    evidence = gather_evidence(
        subject,
        terms,
        seed,
        names,
        reference=reference.summary if reference is not None else {},
        batch_size=batch_size,
    )
    assert evidence is not None  # there is one process
    return metrics_of(evidence, names)


def error_metrics(x: Tensor, solution: Tensor) -> dict[str, Any]:
    """RMS distance to the teacher's solution, and quantiles of it over the samples."""
    return error_values(per_sample_rms(x, solution))
