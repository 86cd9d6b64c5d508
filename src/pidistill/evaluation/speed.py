"""Sampling time of a model and of its teacher."""

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
def measure_speed(sampler: Sampler, teacher: Denoiser | None, num: int) -> dict[str, float]:
    """Milliseconds per sample of a model and of its teacher's solution, for a batch of `num`.

    Medians over runs from given noise, after a warm-up.
    """
    from torch.utils.benchmark import Timer  # slow to import

    z = initial_noise(sampler.model, num, seed=0)
    label = labels_for(sampler.model, num)
    label = None if label is None else label.to(z.device)

    def milliseconds(model: Student | Denoiser, steps: int, solver: str) -> float:
        def run() -> None:
            if isinstance(model, Student):
                model.sample_and_refine(z, steps=steps, refine=sampler.refine, label=label)
            else:
                solve(model, z, steps=steps, solver=solver, label=label)

        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        return 1000 * timer.blocked_autorange(min_run_time=SECONDS).median / num

    speed = {"ms_per_sample": milliseconds(sampler.model, sampler.steps, sampler.solver)}
    if teacher is not None:
        speed["teacher_ms_per_sample"] = milliseconds(teacher, TEACHER_STEPS, "heun")
    return {"speed_batch_size": num, **speed}
