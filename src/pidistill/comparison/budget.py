"""How many training steps a budget pays for."""

from collections.abc import Callable

from pidistill.comparison.costs import Cost
from pidistill.comparison.recipe import Budget
from pidistill.errors import PidistillError
from pidistill.methods.base import Method
from pidistill.training.config import RunConfig


def steps_within(
    budget: Budget,
    config: RunConfig,
    method: Method,
    measure_cost: Callable[[], Cost],
    *,
    own_steps: bool,
    origin: str,
) -> int:
    """The training steps that `budget` pays for.

    The budget decides, unless training spends none of it: then `config.max_train_steps` does.

    Args:
        budget: The budget.
        config: The run's config.
        method: The run's method, which knows what a step costs.
        measure_cost: Measures the time of a step; called only for a budget in seconds.
        own_steps: Whether the recipe itself sets `max_train_steps` for the run.
        origin: The name of the run in errors.

    Raises:
        PidistillError: The budget does not pay for one step; or `max_train_steps` is set although
            the budget decides; or neither decides.
    """
    if budget.images is not None:
        before, per_step = 0.0, float(config.batch_size)
    elif budget.teacher_evaluations is not None:
        before = method.teacher_evaluations_before
        per_step = config.batch_size * method.teacher_evaluations
    else:
        cost = measure_cost()
        before, per_step = cost.preparation_seconds, cost.seconds_per_step
    left = budget.amount - before
    if left < per_step:
        raise PidistillError(
            f"{origin} spends {before:,.6g} {budget.unit} before its first step and "
            f"{per_step:,.6g} per step; the budget of {budget} does not pay for one step"
        )
    if own_steps and per_step:
        raise PidistillError(
            f"{origin} sets max_train_steps to {config.max_train_steps}, but the budget of "
            f"{budget} determines it; remove max_train_steps"
        )
    if not own_steps and not per_step:
        raise PidistillError(
            f"{origin} spends no {budget.unit} in training, so the budget does not limit it; set "
            "its max_train_steps"
        )
    return int(left // per_step) if per_step else config.max_train_steps
