"""What a run would take, measured on a few of its steps; nothing is written."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from pidistill.machine import peak_memory
from pidistill.methods.base import Run
from pidistill.training.assemble import build_trainer
from pidistill.training.config import RunConfig
from pidistill.training.distributed import STRATEGIES
from pidistill.training.trainer import Trainer

STEPS = 5
"""Steps that are timed, after one that is not."""
PATIENCE = 60.0
"""Seconds after which no further step is timed."""


def estimate(config: RunConfig) -> dict[str, Any]:
    """Build everything that `config` names, time a few steps and estimate the run.

    With several processes all of them call it, and get the same; times and memory are those of the
    slowest and the largest.

    Args:
        config: The run's config.

    Returns:
        JSON values: `parameters` of the student and of every other module, by name; `peak_memory`
        of one process in bytes; evaluations of a step over all processes, and of the teacher in
        all; `seconds_per_step`, `images_per_second`, `preparation_seconds`, and `seconds` of the
        whole run without checkpoints; and how the batch is divided.

    Raises:
        PidistillError: As `build_trainer`, or the loss is not finite.
    """
    trainer = build_trainer(config.model_copy(update={"report_to": []}), Path("nowhere"))
    method = trainer.method
    preparation = _preparation_seconds(trainer)
    trainer.train_step()
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
    """Prepare a little, and conclude how long all of it would take."""
    method, processes = trainer.method, trainer.processes
    run = Run(trainer.folder, trainer.config.teacher, trainer.config.seed, processes)
    began = time.perf_counter()
    done = method.rehearse(run, trainer.config.batch_size)
    took = _largest(trainer, time.perf_counter() - began)
    return took / done * method.teacher_evaluations_before / processes.count if done else 0.0


def _step_seconds(trainer: Trainer) -> Iterator[float]:
    """The seconds of each of the timed steps; all processes time as many."""
    began = time.perf_counter()
    for _ in range(STEPS):
        before = trainer.seconds
        trainer.train_step()
        yield trainer.seconds - before
        if trainer.processes.any(time.perf_counter() - began > PATIENCE):
            return


def _largest(trainer: Trainer, number: float) -> float:
    processes = trainer.processes
    return float(max(processes.share(processes.gather(number))))
