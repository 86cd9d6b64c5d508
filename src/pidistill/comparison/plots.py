"""Plots of a comparison: every seed is a dot, the mean is a mark, the teacher is a line."""

import itertools
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from pidistill.comparison.recipe import Sweep
from pidistill.comparison.table import Row
from pidistill.evaluation.plots import STUDENT, TEACHER

TITLES = {
    "rms_error": "RMS distance to the teacher's solution",
    "frechet_distance": "Frechet distance to the data",
}


MARKERS = "os^Dv<>Ph*X"


def metrics_of(rows: list[Row]) -> list[str]:
    """The metrics that can be drawn."""
    return [name for name in TITLES if any(row.metric(name) for row in rows)]


def dot_plot(rows: list[Row], teacher: dict[str, float]) -> Figure:
    """A panel a metric, a line a configuration, at its fewest evaluations; those above 1 are told.

    Args:
        rows: The rows; those without a metric are left out of its panel.
        teacher: The teacher's own metrics, drawn as lines.
    """
    names = metrics_of(rows)
    height = 1.0 + 0.34 * len(rows)
    figure = Figure(figsize=(4.2 * len(names) + 1.6, height), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        for place, row in enumerate(rows):
            spread = row.metric(name)
            if spread is None:
                continue
            y = [place] * len(spread.values)
            axes.plot(spread.values, y, "o", color=STUDENT, alpha=0.35, markersize=5)
            axes.plot([spread.mean], [place], "|", color=STUDENT, markersize=15, markeredgewidth=2)
        _teacher_line(axes.axvline, teacher.get(name))
        _log_axis(axes.xaxis)
        _name_teacher(axes, ("data", "axes fraction"), teacher.get(name), 1.0, below=True)
        axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _dress(axes, name)
        axes.set_xlabel("less is better", fontsize=8)
    return figure


def _name(row: Row) -> str:
    """What a row of `dot_plot` is called."""
    fewest = min(row.metrics, default=1)
    return row.entry.name if fewest == 1 else f"{row.entry.name} ({fewest} evaluations)"


def line_plot(rows: list[Row], sweep: Sweep, x: list[float], teacher: dict[str, float]) -> Figure:
    """A panel a metric against the values of a sweep, with the range of the seeds as a bar."""
    names = metrics_of(rows)
    figure = Figure(figsize=(4.6 * len(names), 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        found = [(at, row.metric(name)) for at, row in zip(x, rows, strict=True)]
        shown = [(at, spread) for at, spread in found if spread is not None]
        places = [at for at, _ in shown]
        means = [spread.mean for _, spread in shown]
        below = [spread.mean - spread.low for _, spread in shown]
        above = [spread.high - spread.mean for _, spread in shown]
        axes.errorbar(
            places, means, yerr=[below, above], fmt="o-", color=STUDENT, capsize=3, markersize=4
        )
        _teacher_line(axes.axhline, teacher.get(name))
        _name_teacher(axes, ("axes fraction", "data"), 0.0, teacher.get(name), below=False)
        if min(x) > 0 and max(x) / min(x) > 8:
            axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
        _log_axis(axes.yaxis)
        axes.set_xlabel(str(sweep.key), fontsize=9)
        _dress(axes, name)
    return figure


def trade_off(rows: list[Row], teacher: dict[str, float], metric: str) -> Figure:
    """A metric against evaluations a sample: a line where a student takes several, else a mark."""
    figure = Figure(figsize=(7.4, 1.2 + 0.24 * max(9, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for row, marker in zip(rows, itertools.cycle(MARKERS), strict=False):
        steps = sorted(row.metrics)
        means = [row.metrics[k][metric].mean for k in steps]
        axes.plot(steps, means, marker=marker, markersize=5, label=row.entry.name)
    _teacher_line(axes.axhline, teacher.get(metric))
    _log_axis(axes.yaxis)
    axes.set_xscale("log", base=2)
    every = sorted({k for row in rows for k in row.metrics})
    axes.set_xticks(every, [str(k) for k in every])
    axes.set_xlabel("evaluations a sample", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _dress(axes, metric)
    return figure


def _teacher_line(line: Callable[..., Any], value: float | None) -> None:
    """Draw the teacher's value, where there is one, with its name."""
    if value is not None:
        line(value, color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")


def _name_teacher(
    axes: Axes, coordinates: tuple[str, str], x: float | None, y: float | None, below: bool
) -> None:
    """Write "teacher" beside its line, where there is one: below the point, or above it."""
    if x is not None and y is not None:
        axes.annotate(
            "teacher",
            (x, y),
            xycoords=coordinates,
            xytext=(4, -3 if below else 3),
            textcoords="offset points",
            va="top" if below else "bottom",
            color=TEACHER,
            fontsize=8,
        )


def _log_axis(axis: XAxis | YAxis) -> None:
    """A logarithmic axis whose ticks are plain numbers, few enough to be read."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def _dress(axes: Axes, metric: str) -> None:
    axes.set_title(TITLES[metric], loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, which="major", color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
