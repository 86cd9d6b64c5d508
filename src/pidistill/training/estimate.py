"""What a run would take, measured on a few of its steps; nothing is written."""

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.methods.base import Run
from pidistill.sharding import local
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
        JSON values. `models`: for the student and everything else that holds weights, `parameters`
        and `bytes`. `memory`, bytes in one process: what its part of the weights, gradients,
        moments and averages takes, and the measured `peak`. `checkpoint_bytes`, on the disk.
        `student_evaluations` and `teacher_evaluations` of one step, over all processes;
        `teacher_evaluations_in_all`. `seconds_per_step`, `images_per_second`, `preparation_seconds`
        and `seconds` of the whole run, checkpoints left out.

    Raises:
        PidistillError: As `build_trainer`, or the loss is not finite.
    """
    quiet = config.model_copy(update={"report_to": []})
    trainer = build_trainer(quiet, Path("nowhere"))
    _reset_peak()
    preparation = time_preparation(trainer)
    with_hooks = _Counter(trainer.method.student)
    trainer.train_step()
    student_rows = with_hooks.remove()
    seconds = _largest(trainer, statistics.median(step_seconds(trainer)))
    everywhere = trainer.processes.sum([float(student_rows)])[0]
    remaining = config.max_train_steps * seconds
    before = trainer.method.teacher_evaluations_before
    a_step = config.batch_size * trainer.method.teacher_evaluations
    return {
        "processes": trainer.processes.count,
        "device": str(trainer.accelerator.device),
        "strategy": STRATEGIES.get(trainer.accelerator.distributed_type, "one process"),
        "max_train_steps": config.max_train_steps,
        "batch_size": config.batch_size,
        "micro_batch": trainer.micro_batch,
        "micro_batches_per_process": trainer.micro_batches,
        "models": _sizes(trainer),
        "memory": _memory(trainer),
        "checkpoint_bytes": _checkpoint_bytes(trainer),
        "student_evaluations": round(everywhere),
        "teacher_evaluations": a_step,
        "teacher_evaluations_in_all": before + config.max_train_steps * a_step,
        "seconds_per_step": seconds,
        "images_per_second": config.batch_size / seconds,
        "preparation_seconds": preparation,
        "seconds": preparation + remaining,
    }


def time_preparation(trainer: Trainer) -> float:
    """Prepare a little, and conclude how many seconds all of it would take."""
    method, processes = trainer.method, trainer.processes
    run = Run(trainer.folder, trainer.config.teacher, trainer.config.seed, processes)
    began = time.perf_counter()
    done = method.rehearse(run, trainer.config.batch_size)
    took = _largest(trainer, time.perf_counter() - began)
    if not done:
        return 0.0
    return took / done * method.teacher_evaluations_before / processes.count


def step_seconds(trainer: Trainer) -> Iterator[float]:
    """The seconds of each of the timed steps; all processes time as many."""
    began = time.perf_counter()
    for _ in range(STEPS):
        before = trainer.seconds
        trainer.train_step()
        yield trainer.seconds - before
        if trainer.processes.any(time.perf_counter() - began > PATIENCE):
            return


def _largest(trainer: Trainer, number: float) -> float:
    """The largest of the numbers of the processes."""
    processes = trainer.processes
    return float(max(processes.share(processes.gather(number))))


class _Counter:
    """Counts the samples that a student's network evaluates."""

    def __init__(self, student: nn.Module) -> None:
        self.rows = 0
        network = student.network
        assert isinstance(network, nn.Module)
        self.handle = network.register_forward_pre_hook(self._count)

    def _count(self, network: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.rows += len(arguments[0])

    def remove(self) -> int:
        """Stop counting; returns how many samples were evaluated."""
        self.handle.remove()
        return self.rows


def _sizes(trainer: Trainer) -> dict[str, dict[str, int]]:
    """Parameters and bytes of everything that the method holds, by its name there."""
    held = {k: v for k, v in vars(trainer.method).items() if isinstance(v, nn.Module)}
    return {
        name: {
            "parameters": sum(p.numel() for p in module.parameters()),
            "bytes": _bytes(list(module.state_dict().values())),
        }
        for name, module in held.items()
    }


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _memory(trainer: Trainer) -> dict[str, int]:
    """Bytes in this process, or in the fullest of several where they are measured."""
    parts = trainer.state.parts.values()
    parameters = [local(p.detach()) for part in parts for p in part.module.parameters()]
    trained = {id(p) for part in parts for p in part.module.parameters()}
    held = [value for value in vars(trainer.method).values() if isinstance(value, nn.Module)]
    others = {id(p): p for module in held for p in module.parameters() if id(p) not in trained}
    return {
        "trained": _bytes(parameters),
        "gradients": _bytes(parameters),
        "moments": _bytes([local(value) for value in _moments(trainer)]),
        "averages": sum(_bytes(a) for part in parts for a in part.averages.averages),
        "other_networks": _bytes(list(others.values())),
        "peak": round(_largest(trainer, _peak())),
    }


def _moments(trainer: Trainer) -> list[Tensor]:
    """What the optimizers keep for each parameter."""
    optimizers = [part.optimizer for part in trainer.state.parts.values()]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _checkpoint_bytes(trainer: Trainer) -> int:
    """Bytes of a checkpoint: weights, averages, moments, and what the method keeps."""
    weights = sum(
        _bytes(list(part.module.state_dict().values())) * (1 + len(part.ema_rates))
        for part in trainer.state.parts.values()
    )
    method = list(trainer.method.state_tensors().values())
    return weights + _bytes(_moments(trainer)) + _bytes(method)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """The most bytes so far: on the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved())
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
