"""What a training step costs in time and memory, measured for all configurations in turn.

The times of training runs are not comparable: the machine did other things during one than during
another. Here every configuration takes a few steps in a fresh process, then the next one does, and
all of that several times over.
"""

import concurrent.futures
import multiprocessing
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator

from pidistill.errors import PidistillError
from pidistill.machine import peak_memory
from pidistill.training.config import RunConfig
from pidistill.training.estimate import estimate


class Cost(NamedTuple):
    """What a run costs on this machine."""

    seconds_per_step: float
    """The median over a few steps."""
    preparation_seconds: float
    """Time before the first step of the whole run, extrapolated from a part of it."""
    memory: int
    """Peak bytes: on an accelerator all that is allocated there; on the CPU what the process takes
    beyond its libraries."""


def measure_cost(config: RunConfig) -> Cost:
    """Take a few steps of the run `config` in a fresh process; nothing is written.

    Raises `PidistillError` when the loss is not finite; whatever else the process raises is raised
    here, too.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_cost_in_this_process, config).result()


def median_costs(
    configs: dict[str, RunConfig],
    repeats: int,
    *,
    on_measured: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Cost]:
    """Measure all configurations in turn, `repeats` times, and return the medians.

    Args:
        configs: The configurations by any key.
        repeats: How often each is measured.
        on_measured: Called with 1 after every measurement.
        say: Called with a line for a configuration that is left out: its loss is not finite, or it
            lacks memory.
    """
    found: dict[str, list[Cost]] = {key: [] for key in configs}
    failed: set[str] = set()
    for _ in range(repeats):
        for key in [key for key in configs if key not in failed]:
            try:
                found[key].append(measure_cost(configs[key]))
            except (PidistillError, RuntimeError, MemoryError) as error:
                failed.add(key)
                say(f"{configs[key].method.name}: its steps cannot be timed: {error}")
            on_measured(1)
    return {
        key: Cost(*(statistics.median_low(values) for values in zip(*costs, strict=True)))
        for key, costs in found.items()
        if costs
    }


def _cost_in_this_process(config: RunConfig) -> Cost:
    _load_libraries()
    before = 0 if torch.cuda.is_available() else peak_memory()
    facts = estimate(config)
    return Cost(
        facts["seconds_per_step"], facts["preparation_seconds"], max(0, peak_memory() - before)
    )


def _load_libraries() -> None:
    """Take one step of a trivial model, for the memory that libraries take once."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    layer = accelerator.prepare(torch.nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 1, device=accelerator.device)).sum().backward()
    optimizer.step()
