"""What training costs in time and memory, and how many steps a budget pays for.

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

from pidistill.comparison.recipe import Budget
from pidistill.errors import PidistillError
from pidistill.machine import peak_memory
from pidistill.methods.base import Method
from pidistill.progress import Show
from pidistill.training.config import RunConfig
from pidistill.training.estimate import estimate

MANY_STEPS = 10_000
"""Steps of a run whose phases have their shares almost exactly."""
SHORTEST = 1e-3
"""Seconds without which no step is begun."""


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
    """Take a few steps of the run `config` in a fresh process, whose exceptions are raised here.

    Nothing is written. Raises `PidistillError` when the loss is not finite.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_cost_in_this_process, config).result()


def median_costs(
    configs: dict[str, RunConfig], repeats: int, progress: Show, say: Callable[[str], None]
) -> dict[str, Cost]:
    """Measure all configurations in turn, `repeats` times, and return the medians by their keys.

    A configuration that fails, because its loss is not finite or memory runs out, is omitted; `say`
    receives a line about it.
    """
    found: dict[str, list[Cost]] = {key: [] for key in configs}
    failed: set[str] = set()
    with progress("timing steps", repeats * len(configs), "measurements") as advance:
        for _ in range(repeats):
            for key in [key for key in configs if key not in failed]:
                try:
                    found[key].append(measure_cost(configs[key]))
                except (PidistillError, RuntimeError, MemoryError) as error:
                    failed.add(key)
                    say(f"{configs[key].method.name}: its steps cannot be timed: {error}")
                advance(1)
    return {
        key: Cost(*map(statistics.median_low, zip(*costs, strict=True)))
        for key, costs in found.items()
        if costs
    }


def _cost_in_this_process(config: RunConfig) -> Cost:
    _load_libraries()
    before = 0 if torch.cuda.is_available() else peak_memory()
    facts = estimate(config)
    memory = max(0, peak_memory() - before)
    return Cost(facts["seconds_per_step"], facts["preparation_seconds"], memory)


def _load_libraries() -> None:
    """Take one step of a trivial model, for the memory that libraries take once."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    layer = accelerator.prepare(torch.nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 1, device=accelerator.device)).sum().backward()
    optimizer.step()


class Allowance(NamedTuple):
    """How long a budget lets a run train."""

    steps: int
    """Its `max_train_steps`; where there are `seconds`, they count instead."""
    seconds: float | None = None


def allowance(
    budget: Budget,
    config: RunConfig,
    method: Method,
    cost: Callable[[], Cost],
    *,
    own_steps: bool,
    origin: str,
) -> Allowance:
    """How long `budget` lets the run `config` train.

    `cost` is called where a budget in seconds pays for work before the first step. Where training
    spends none of the budget, `config.max_train_steps` decides, and only there may the recipe set
    it (`own_steps`).

    Raises `PidistillError`, which begins with `origin`, when the budget does not pay for one step,
    or `max_train_steps` is set where the budget decides, or is not set where nothing else does.
    """
    decides = True
    before, per_step = 0.0, float(config.batch_size)
    if budget.teacher_evaluations is not None:
        before = method.teacher_evaluations_before
        backwards = method.teacher_backwards(MANY_STEPS, MANY_STEPS) / MANY_STEPS
        per_step = config.batch_size * (method.teacher_evaluations + 2 * backwards)
        decides = per_step > 0
    elif budget.seconds is not None:
        before = cost().preparation_seconds if method.teacher_evaluations_before else 0.0
        per_step = SHORTEST
    left = budget.amount - before
    if left < per_step:
        raise PidistillError(
            f"{origin} spends {before:,.6g} {budget.unit} before its first step and at least "
            f"{per_step:,.6g} per step; the budget of {budget} does not pay for one step"
        )
    if own_steps and decides:
        raise PidistillError(
            f"{origin} sets max_train_steps to {config.max_train_steps}, but the budget of "
            f"{budget} determines it; remove max_train_steps"
        )
    if not own_steps and not decides:
        raise PidistillError(
            f"{origin} spends no {budget.unit} in training, so the budget does not limit it; set "
            "its max_train_steps"
        )
    if budget.seconds is not None:
        return Allowance(config.max_train_steps, left)
    return Allowance(int(left // per_step) if decides else config.max_train_steps)
