"""The curves in the logs of runs: which there are, smoothed, thinned, and on what axis."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from pidistill.watching.status import RunStatus, is_number

COUNTERS = ("step", "images", "teacher_evals", "seconds")
"""Entries of a log line that only count."""

SETTINGS = ("learning_rate",)
"""Entries that were chosen, not measured: nothing to smooth."""

POINTS = 1000
"""A curve is thinned to at most so many points."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity of one run."""

    run: int
    """Which of the runs."""
    steps: list[float]
    values: list[float]
    smooth: list[float]
    """The values, smoothed."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One quantity of all runs."""

    name: str
    curves: list[Curve]
    log: bool
    """Whether the axis is better logarithmic."""

    def x_range(self) -> tuple[float, float]:
        """Lowest and highest step."""
        return _range([step for curve in self.curves for step in curve.steps])

    def y_range(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return _range([value for curve in self.curves for value in curve.values])


def panels(runs: list[RunStatus]) -> list[Panel]:
    """One panel for every quantity that a run has logged twice: the loss first, settings last."""
    names = dict.fromkeys(["loss"])
    names.update(dict.fromkeys(key for run in runs for line in run.log for key in line))
    measured = [name for name in names if name not in (*COUNTERS, *SETTINGS)]
    found = []
    for name in [*measured, *SETTINGS]:
        series = {index: _series(run.log, name) for index, run in enumerate(runs)}
        series = {index: points for index, points in series.items() if len(points) > 1}
        if series:
            log = name in measured and _is_log([y for line in series.values() for _, y in line])
            smooth = smoothed if name in measured else list
            curves = [_curve(index, points, log, smooth) for index, points in series.items()]
            found.append(Panel(name, curves, log))
    return found


def smoothed(values: list[float]) -> list[float]:
    """The mean over about a twentieth of the values, as many before each as after it.

    So the curve does not lag behind; towards both ends the mean is of fewer values.
    """
    last, sums = len(values) - 1, [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(len(values)):
        reach = min(len(values) // 40, i, last - i)
        means.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return means


def _series(log: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Steps and values of one quantity; what is not a finite number is left out."""
    return [
        (float(line["step"]), float(line[name]))
        for line in log
        if is_number(line.get(name)) and is_number(line["step"])
    ]


def _curve(
    run: int,
    points: list[tuple[float, float]],
    log: bool,
    smooth: Callable[[list[float]], list[float]],
) -> Curve:
    steps, values = [x for x, _ in points], [y for _, y in points]
    if log:  # the mean of the logarithms goes through the middle of what is drawn
        means = [math.exp(value) for value in smooth([math.log(value) for value in values])]
    else:
        means = smooth(values)
    every = math.ceil(len(points) / POINTS)
    return Curve(run, steps[::every], values[::every], means[::every])


def _is_log(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 5 * min(values)


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
