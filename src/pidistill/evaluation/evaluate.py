"""The metrics of a student: distance to its teacher's solution, Frechet distance, speed."""

import statistics as averages
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pidistill.data.noise import initial_noise
from pidistill.denoiser import Denoiser
from pidistill.evaluation.features import features_for
from pidistill.evaluation.reference import Reference, ReferenceData, collect_reference
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.evaluation.trajectory import per_sample_rms, rms
from pidistill.ode import Solution, solve
from pidistill.student import Student, labels_for

QUANTILES = (0.5, 0.9, 0.99)


def reference_statistics(x: Tensor) -> Reference | None:
    """Prepare reference samples (n, *sample_shape), or None where no feature network suits."""
    network = features_for(tuple(x.shape[1:]))
    if network is None:
        return None
    data = ReferenceData("samples", x, None, None)
    summary = collect_reference(data, network, ["statistics", "split_half"])
    return Reference("samples", network, summary)


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
    """Measure a student; a metric that cannot be computed is absent.

    Args:
        student: The student.
        teacher: Its teacher, for the error and the comparison of speed; None leaves them out.
        reference: Reference samples, for Frechet distances; None leaves them out.
        num: Number of samples.
        seed: Seed of the noise, the same for student and teacher.
        solved: The teacher's samples of that noise (`teacher_samples`), where they are at hand.
        steps: Evaluations of the student a sample.
        batch_size: Samples evaluated at once.
        on_batch: Called after every batch with its size; student and teacher both count.

    Returns:
        The metrics by name, as JSON values.
    """
    drawn = student.generate(num, seed=seed, steps=steps, batch_size=batch_size, on_batch=on_batch)
    metrics: dict[str, Any] = {"nfe": drawn.nfe, "num_samples": num, "seed": seed}
    if reference is not None:
        metrics["frechet_distance"] = reference.distance(drawn.x)
        metrics["reference_split_frechet_distance"] = reference.split_half
    if teacher is not None:
        if solved is None:
            solved = teacher_samples(
                teacher, num, seed=seed, batch_size=batch_size, on_batch=on_batch
            )
        metrics["teacher_nfe"] = solved.nfe
        metrics.update(error_metrics(drawn.x, solved.x))
        if reference is not None:
            metrics["teacher_frechet_distance"] = reference.distance(solved.x)
    metrics.update(measure_speed(student, teacher, num=min(num, batch_size), steps=steps))
    return metrics


def error_metrics(x: Tensor, solution: Tensor) -> dict[str, Any]:
    """RMS distance to the teacher's solution, and quantiles of it over the samples."""
    errors = per_sample_rms(x, solution)
    levels = torch.tensor(QUANTILES, dtype=errors.dtype, device=errors.device)
    return {
        "rms_error": rms(errors),
        "error_quantiles": {
            str(level): value
            for level, value in zip(QUANTILES, errors.quantile(levels).tolist(), strict=True)
        },
    }


def measure_speed(
    student: Student, teacher: Denoiser | None, *, num: int, steps: int = 1
) -> dict[str, float]:
    """Milliseconds a sample of the student, and of the teacher's solution, for one batch of `num`.

    Medians of repeated runs from given noise, student and teacher in turn, after a warm-up run.
    """
    z = initial_noise(student, num, seed=0)
    label = labels_for(student, num)
    label = None if label is None else label.to(z.device)

    def run_student() -> None:
        with torch.no_grad():
            student.sample(z, steps=steps, label=label)

    def run_teacher() -> None:
        if teacher is not None:
            solve(teacher, z, steps=TEACHER_STEPS, label=label)

    _seconds(run_student, 3)
    of_student, of_teacher = [], []
    for _ in range(3):
        of_student += [_seconds(run_student, 5) for _ in range(5)]
        of_teacher.append(_seconds(run_teacher, 1))
    speed: dict[str, float] = {
        "speed_batch_size": num,
        "ms_per_sample": 1000 * averages.median(of_student) / num,
    }
    if teacher is not None:
        speed["teacher_ms_per_sample"] = 1000 * averages.median(of_teacher) / num
    return speed


def _seconds(work: Callable[[], None], repeats: int) -> float:
    """Seconds of one call of `work`, over `repeats` calls."""
    _synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronize()
    return (time.perf_counter() - began) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
