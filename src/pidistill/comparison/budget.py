"""Training steps that a budget pays for."""

import dataclasses
from collections.abc import Callable

from pidistill.comparison.recipe import Budget
from pidistill.errors import PidistillError
from pidistill.methods.base import Method
from pidistill.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a run goes on this machine."""

    seconds_per_step: float
    seconds_before: float
    """Preparation before the first step."""


def steps_within(
    budget: Budget,
    config: RunConfig,
    method: Method,
    pace: Callable[[], Pace],
    *,
    own_steps: bool,
    origin: str,
) -> int:
    """The steps that a run of `config` takes within `budget`.

    The budget decides how many, except where training spends nothing of it: then the run's own
    `max_train_steps` does.

    Args:
        budget: The budget.
        config: The run's config; its `max_train_steps` is its own, or a preset's.
        method: The run's method, which says what a step costs.
        pace: Measures the run's pace; called only for a budget in seconds.
        own_steps: Whether the recipe itself sets `max_train_steps` for the run.
        origin: What an error calls the run.

    Raises:
        PidistillError: The budget does not pay for one step, or both or neither of the budget and
            the recipe say how many there are.
    """
    amount, before, a_step, unit = _costs(budget, config, method, pace)
    if amount < before:
        raise PidistillError(
            f"{origin} spends {before:g} {unit} before its first step; the budget is {amount:g}"
        )
    if a_step == 0:
        if not own_steps:
            raise PidistillError(
                f"{origin} spends no {unit} while it trains, so the budget does not say for how "
                "long; set its max_train_steps"
            )
        return config.max_train_steps
    if own_steps:
        raise PidistillError(
            f"{origin} sets max_train_steps to {config.max_train_steps}, but the budget decides "
            "it; leave it out"
        )
    steps = int((amount - before) // a_step)
    if steps < 1:
        raise PidistillError(
            f"{origin} spends {a_step:g} {unit} a step; the budget leaves {amount - before:g}"
        )
    return steps


def _costs(
    budget: Budget, config: RunConfig, method: Method, pace: Callable[[], Pace]
) -> tuple[float, float, float, str]:
    """The budget's amount, what is spent before the first step and by a step, and the unit."""
    if budget.images is not None:
        return budget.images, 0, config.batch_size, "images"
    if budget.teacher_evaluations is not None:
        a_step = config.batch_size * method.teacher_evaluations
        before = method.teacher_evaluations_before
        return budget.teacher_evaluations, before, a_step, "teacher evaluations"
    assert budget.seconds is not None
    measured = pace()
    return budget.seconds, measured.seconds_before, measured.seconds_per_step, "seconds"
