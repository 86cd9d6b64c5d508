"""Sampling time of a model and of its teacher."""

import statistics
import time
from collections.abc import Callable

import torch

from pidistill.denoiser import Denoiser
from pidistill.evaluation.sampling import TEACHER_STEPS, Sampler
from pidistill.noise import initial_noise
from pidistill.ode import solve
from pidistill.students.base import Student
from pidistill.students.labels import labels_for

SECONDS = 0.2
"""Minimum total run time of a measurement."""


@torch.no_grad()
def measure_speed(
    sampler: Sampler,
    teacher: Denoiser | None,
    num: int,
    on_model: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Milliseconds per sample of a model and of its teacher's solution, for a batch of `num`.

    Medians over runs from given noise, after a warm-up, which takes a teacher two nodes only.
    `on_model` is called when a model is timed.
    """
    z = initial_noise(sampler.model, num, seed=0)
    label = labels_for(sampler.model, num)
    label = None if label is None else label.to(z.device)

    def milliseconds(model: Student | Denoiser, steps: int, solver: str) -> float:
        def seconds(steps: int) -> float:
            began = time.perf_counter()
            if isinstance(model, Student):
                model.sample_and_refine(z, steps=steps, refine=sampler.refine, label=label)
            else:
                solve(model, z, steps=steps, solver=solver, label=label)
            if z.device.type != "cpu":
                torch.accelerator.synchronize(z.device)
            return time.perf_counter() - began

        seconds(steps if isinstance(model, Student) else 2)
        runs = [seconds(steps)]
        while sum(runs) < SECONDS:
            runs.append(seconds(steps))
        on_model()
        return 1000 * statistics.median(runs) / num

    speed = {"ms_per_sample": milliseconds(sampler.model, sampler.steps, sampler.solver)}
    if teacher is not None:
        speed["teacher_ms_per_sample"] = milliseconds(teacher, TEACHER_STEPS, "heun")
    return {"speed_batch_size": num, **speed}
