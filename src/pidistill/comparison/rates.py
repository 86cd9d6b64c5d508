"""The learning rate of every configuration, chosen by the same rule for all.

Each is trained for a share of the budget at several multiples of its own learning rates. While the
best one is the smallest or the largest that was tried, one more is tried beyond it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pidistill.comparison.plan import Configuration, Plan, Search, planned_runs
from pidistill.comparison.recipe import RateSearch
from pidistill.comparison.runs import PlannedRun, identity_of, progress_of, train_missing
from pidistill.errors import PidistillError
from pidistill.training.config import RunConfig

Results = dict[float, float | None]
"""What was found at each multiple; None where the run failed."""


def choose_rates(
    plan: Plan,
    search: RateSearch,
    measure: Callable[[Path], float],
    train: Callable[[str, PlannedRun], None],
    say: Callable[[str], None],
) -> Plan:
    """The plan with every configuration at its best learning rate, after the tries that it takes.

    Args:
        plan: The plan, with all configurations at their own rates.
        search: The rule.
        measure: Measures the run in a folder; lower is better.
        train: As in `train_missing`.
        say: Receives lines for people.
    """
    configurations = {c.identity: c for c in plan.configurations()}
    found: dict[str, Results] = {identity: {} for identity in configurations}
    while True:
        tries = {
            (identity, multiple): _try(configurations[identity], search, multiple)
            for identity, results in found.items()
            for multiple in next_multiples(search, results)
        }
        if not tries:
            break
        names = {
            key: f"learning rate x{key[1]:g} of {configurations[key[0]].name}" for key in tries
        }
        failures = train_missing([(names[key], tries[key]) for key in tries], train, say)
        for key, run in tries.items():
            try:
                result = None if run.folder in failures else measure(run.folder)
            except PidistillError as error:
                say(f"{names[key]}: {error}")
                result = None
            found[key[0]][key[1]] = result
    chosen = {
        identity: _at_best(configuration, search, found[identity])
        for identity, configuration in configurations.items()
    }
    sections = [
        dataclasses.replace(
            section,
            configurations=[
                dataclasses.replace(chosen[c.identity], name=c.name) for c in section.configurations
            ],
        )
        for section in plan.sections
    ]
    return dataclasses.replace(plan, sections=sections)


def next_multiples(search: RateSearch, results: Results) -> list[float]:
    """The multiples to try after those with `results`; none when the best one is found."""
    if not results:
        return search.multiples
    best, beyond = best_multiple(results), _beyond(results)
    return [] if best is None or beyond is None or len(results) >= search.most else [beyond]


def best_multiple(results: Results) -> float | None:
    """The multiple with the lowest result; None if every run failed."""
    finite = {multiple: result for multiple, result in results.items() if result is not None}
    return min(finite, key=lambda multiple: finite[multiple]) if finite else None


def _beyond(results: Results) -> float | None:
    """The multiple beyond the best one, as far as its neighbour is; None if that was tried."""
    best, tried = best_multiple(results), sorted(results)
    if best not in (tried[0], tried[-1]):
        return None
    neighbour = tried[1] if best == tried[0] else tried[-2]
    return float(f"{best * best / neighbour:.6g}")


def _try(configuration: Configuration, search: RateSearch, multiple: float) -> PlannedRun:
    """A run with a share of the budget: of its steps or seconds, of its warm-up, of its pairs."""
    base, share = configuration.runs[0], search.share
    config = _scaled(base.config, multiple).model_copy(
        update={
            "max_train_steps": max(1, round(share * base.config.max_train_steps)),
            "lr_warmup_steps": round(share * base.config.lr_warmup_steps),
            "method": base.config.method.for_share(share),
            "preview_steps": 0,
        }
    )
    seconds = None if base.seconds is None else share * base.seconds
    (run,) = planned_runs(config, seconds, configuration.inputs, [search.seed], base.folder.parent)
    return run


def _scaled(config: RunConfig, multiple: float) -> RunConfig:
    scale = multiple * config.learning_rate_scale
    return config.model_copy(update={"learning_rate_scale": scale})


def _at_best(configuration: Configuration, search: RateSearch, results: Results) -> Configuration:
    """The configuration at its best learning rate; at its own where every try failed."""
    multiple = best_multiple(results) or 1.0
    base, inputs = configuration.runs[0], configuration.inputs
    config = _scaled(base.config, multiple)
    seeds = [run.config.seed for run in configuration.runs]
    spent = [progress_of(_try(configuration, search, tried).folder) for tried in results]
    return dataclasses.replace(
        configuration,
        identity=identity_of(config, base.seconds, *inputs),
        runs=planned_runs(config, base.seconds, inputs, seeds, base.folder.parent),
        rate=configuration.rate and multiple * configuration.rate,
        search=Search(
            multiple,
            results,
            is_edge=_beyond(results) is not None,
            teacher_evals=sum(one.get("teacher_evals", 0) for one in spent),
            teacher_backwards=sum(one.get("teacher_backwards", 0) for one in spent),
            seconds=sum(one.get("seconds", 0.0) for one in spent),
        ),
    )
