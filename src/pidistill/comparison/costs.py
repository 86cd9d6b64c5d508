"""What a training step costs, measured for all configurations of a comparison in turn.

Times of training runs cannot be compared: the machine did other things during one than during the
next. Here every configuration takes a few steps in a fresh process, then the next one does, and all
of that several times over.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from pidistill.comparison.budget import Pace
from pidistill.data import load_data
from pidistill.errors import PidistillError
from pidistill.teachers import load_teacher
from pidistill.training.assemble import build_method
from pidistill.training.config import RunConfig
from pidistill.training.estimate import step_seconds, time_preparation
from pidistill.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Cost:
    """What training costs on this machine."""

    ms_per_step: float
    """Median over the steps of all measurements."""
    ms_quartiles: tuple[float, float]
    memory: int
    """Bytes at the peak of training, the median over the measurements. On the CPU: what it takes
    beyond libraries, teacher and data. On an accelerator: all that is allocated there."""


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """A few steps of a run, in a process of their own."""

    step_seconds: list[float]
    seconds_before: float
    """Preparation of the whole run, as a part of it suggests."""
    memory: int


def rehearse(config: RunConfig) -> Rehearsal:
    """Take a few steps of the run that `config` describes; nothing is written."""
    assert config.teacher is not None
    teacher = load_teacher(config.teacher)
    data = None if config.data is None else load_data(config.data)
    _warm_up_libraries()
    watch = MemoryWatch()
    quiet = config.model_copy(update={"report_to": []})
    trainer = Trainer(quiet, build_method(config, teacher, data), Path("nowhere"), data=data)
    seconds_before = time_preparation(trainer)
    trainer.train_step()  # the first step of a process takes longer
    return Rehearsal(list(step_seconds(trainer)), seconds_before, watch.taken())


class MemoryWatch:
    """A thread that watches how much memory the process holds, on the CPU."""

    def __init__(self) -> None:
        """Start watching."""
        self._process = psutil.Process()
        self.held = self.peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def taken(self) -> int:
        """Stop, and return the bytes that were taken at the peak since the start."""
        self._stop.set()
        self._thread.join()
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return int(self.peak - self.held)


def _warm_up_libraries() -> None:
    """Let the libraries take the memory that any training takes once."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    layer = accelerator.prepare(torch.nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 1, device=accelerator.device)).sum().backward()
    optimizer.step()


def rehearse_in_turn(
    configs: dict[str, RunConfig], repeats: int
) -> Iterator[tuple[str, Rehearsal | Exception]]:
    """Rehearse all configurations in turn, `repeats` times, each time in a fresh process.

    Yields the key of each with its rehearsal, or with the error that it ended with: a loss that is
    not finite, or no memory.
    """
    for _ in range(repeats):
        for key, config in configs.items():
            try:
                yield key, in_fresh_process(config)
            except (PidistillError, RuntimeError, MemoryError) as error:
                yield key, error


def cost_of(rehearsals: list[Rehearsal]) -> Cost:
    """What the rehearsals of one configuration say."""
    seconds = [value for rehearsal in rehearsals for value in rehearsal.step_seconds]
    low, middle, high = (float(value) for value in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Cost(
        ms_per_step=1000 * middle,
        ms_quartiles=(1000 * low, 1000 * high),
        memory=int(statistics.median(rehearsal.memory for rehearsal in rehearsals)),
    )


def measure_pace(config: RunConfig) -> Pace:
    """How fast the run that `config` describes goes."""
    rehearsal = in_fresh_process(config)
    return Pace(statistics.median(rehearsal.step_seconds), rehearsal.seconds_before)


def in_fresh_process(config: RunConfig) -> Rehearsal:
    """`rehearse` in a process of its own, so that memory is that of this run alone."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(rehearse, config).result()
