"""Estimate the cost of a run from a few of its steps; nothing is written."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from pidistill.data import Dataset
from pidistill.devices import wait_for
from pidistill.machine import peak_memory
from pidistill.methods.base import Run
from pidistill.training.assemble import build_trainer
from pidistill.training.config import RunConfig
from pidistill.training.distributed import STRATEGIES
from pidistill.training.trainer import Trainer

STEPS = 5
"""Number of timed steps, after one untimed step."""
PATIENCE = 60.0
"""Stop timing steps after this many seconds."""


def estimate(config: RunConfig, data: Dataset | None = None) -> dict[str, Any]:
    """Build everything that `config` names, time a few steps and estimate the run.

    All processes must call it and get the same result: the time of the slowest and the memory of
    the largest.

    Args:
        config: The run's config.
        data: The images; None loads the config's.

    Returns:
        JSON values: `parameters` of the student and every other module, by name; `peak_memory` of
        one process in bytes; evaluations per step over all processes, and the teacher's in total;
        `seconds_per_step`, `images_per_second`, `preparation_seconds`, and `seconds` of the whole
        run without checkpoints; and how the batch is divided.

    Raises:
        PidistillError: As in `build_trainer`, or the loss is not finite.
    """
    trainer = build_trainer(config.model_copy(update={"report_to": []}), Path("nowhere"), data=data)
    method = trainer.method
    preparation = _preparation_seconds(trainer)
    trainer.train_step()
    trainer.measured.require_finite()
    seconds = _largest(trainer, statistics.median(_step_seconds(trainer)))
    modules = {name: value for name, value in vars(method).items() if isinstance(value, nn.Module)}
    a_step = config.batch_size * method.teacher_evaluations
    return {
        "processes": trainer.processes.count,
        "device": str(trainer.accelerator.device),
        "strategy": STRATEGIES.get(trainer.accelerator.distributed_type, "one process"),
        "max_train_steps": config.max_train_steps,
        "batch_size": config.batch_size,
        "micro_batch": trainer.micro_batch,
        "micro_batches_per_process": trainer.micro_batches,
        "parameters": {
            name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()
        },
        "peak_memory": round(_largest(trainer, peak_memory())),
        "student_evaluations": config.batch_size * method.student_evaluations,
        "teacher_evaluations": a_step,
        "teacher_evaluations_in_all": method.teacher_evaluations_before
        + config.max_train_steps * a_step,
        "seconds_per_step": seconds,
        "images_per_second": config.batch_size / seconds,
        "preparation_seconds": preparation,
        "seconds": preparation + config.max_train_steps * seconds,
    }


def _preparation_seconds(trainer: Trainer) -> float:
    """The time to prepare the run, extrapolated from a small part of the work."""
    method, processes = trainer.method, trainer.processes
    run = Run(trainer.folder, trainer.config.teacher, trainer.config.seed, processes)
    began = time.perf_counter()
    done = method.rehearse(run, trainer.config.batch_size)
    took = _largest(trainer, time.perf_counter() - began)
    return took / done * method.teacher_evaluations_before / processes.count if done else 0.0


def _step_seconds(trainer: Trainer) -> Iterator[float]:
    """The duration of each timed step; all processes time the same number of steps."""
    began = time.perf_counter()
    for _ in range(STEPS):
        before = time.perf_counter()
        trainer.train_step()
        wait_for(trainer.accelerator.device)
        yield time.perf_counter() - before
        if trainer.processes.any(time.perf_counter() - began > PATIENCE):
            return


def _largest(trainer: Trainer, number: float) -> float:
    processes = trainer.processes
    return float(max(processes.share(processes.gather(number))))
