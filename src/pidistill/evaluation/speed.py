"""Time a sample, of a model and of its teacher's solution."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.evaluation.sampling import TEACHER_STEPS, Sampler
from pidistill.noise import initial_noise
from pidistill.ode import solve
from pidistill.students.base import Student, labels_for

ROUNDS = 3
QUICK = 0.05
"""Seconds for which a quick run is repeated, so that the clock and noise weigh little."""


def measure_speed(sampler: Sampler, teacher: Denoiser | None, num: int) -> dict[str, float]:
    """Milliseconds a sample of a model, and of its teacher's solution, for one batch of `num`.

    Medians of runs from given noise, model and teacher in turn, after a warm-up.
    """
    model = sampler.model
    z = initial_noise(model, num, seed=0)
    label = labels_for(model, num)
    label = None if label is None else label.to(z.device)

    def run(model: Student | Denoiser, steps: int, solver: str) -> None:
        _sample(model, z, label, steps, solver)

    works: dict[str, Callable[[], None]] = {
        "ms_per_sample": lambda: run(model, sampler.steps, sampler.solver)
    }
    run(model, sampler.steps if isinstance(model, Student) else 2, sampler.solver)
    if teacher is not None:
        works["teacher_ms_per_sample"] = lambda: run(teacher, TEACHER_STEPS, "heun")
        run(teacher, 2, "heun")
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name] += _seconds(work)
    speed = {name: 1000 * statistics.median(times[name]) / num for name in works}
    return {"speed_batch_size": num, **speed}


@torch.no_grad()
def _sample(
    model: Student | Denoiser, z: Tensor, label: Tensor | None, steps: int, solver: str
) -> None:
    if isinstance(model, Student):
        model.sample(z, steps=steps, label=label)
    else:
        solve(model, z, steps=steps, solver=solver, label=label)


def _seconds(work: Callable[[], None]) -> list[float]:
    """Seconds of each run of `work`: of one, or of as many as take `QUICK`."""
    times: list[float] = []
    while sum(times) < QUICK:
        _synchronize()
        began = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - began)
    return times


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
