"""Time a sample, of a student and of its teacher's solution."""

import statistics as averages
import time
from collections.abc import Callable

import torch

from pidistill.denoiser import Denoiser
from pidistill.evaluation.sampling import TEACHER_STEPS
from pidistill.noise import initial_noise
from pidistill.ode import solve
from pidistill.students.base import Student, labels_for


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


def measure_teacher_speed(
    teacher: Denoiser, *, num: int, steps: int, solver: str
) -> dict[str, float]:
    """Milliseconds a sample of a teacher's solution, for one batch of `num`: the median of three.

    The solver takes `steps` nodes (see `ode.solve`).
    """
    z = initial_noise(teacher, num, seed=0)
    label = labels_for(teacher, num)
    label = None if label is None else label.to(z.device)
    solve(teacher, z, steps=2, solver=solver, label=label)
    times = [
        _seconds(lambda: solve(teacher, z, steps=steps, solver=solver, label=label), 1)
        for _ in range(3)
    ]
    return {"speed_batch_size": num, "ms_per_sample": 1000 * averages.median(times) / num}


def _seconds(work: Callable[[], object], repeats: int) -> float:
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
