"""Plots of a comparison: every seed is a dot, the mean is a mark, the teacher is a line."""

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pidistill.comparison.plan import Section
from pidistill.comparison.recipe import file_name
from pidistill.comparison.table import Comparison, Row
from pidistill.report.plots import STUDENT, TEACHER, finish_axes, log_axis

TITLES = {
    "rms_error": "Distance to the teacher's solution",
    "frechet_distance": "Frechet distance to the data",
}
"""The metrics that are plotted."""
MARKERS = "os^Dv<>Ph*X"
WIDTH = 4.8
"""Of a figure, in inches."""
LABEL = 20
"""Letters in a line of a label."""


def plots(comparison: Comparison, section: Section) -> dict[str, Figure]:
    """The plots of a section, by file name; none if every run failed."""
    name, teacher = file_name(section.title), comparison.teacher
    rows = [row for row in comparison.rows[section.title] if row.metrics]
    if not rows:
        return {}
    if section.sweep is not None and section.sweep.is_numeric:
        return {name: line_plot(rows, str(section.sweep.key), teacher)}
    figures = {name: dot_plot(rows, teacher)}
    if any(max(row.metrics) > 1 for row in rows):
        figures[f"{name}-evaluations"] = trade_off(rows, teacher)
    return figures


def dot_plot(rows: list[Row], teacher: dict[str, Any]) -> Figure:
    """A panel per metric and a line per row, at its smallest NFE; an NFE above 1 is named."""
    names = _metrics_of(rows)
    labels = [r.name if min(r.metrics) == 1 else f"{r.name} ({min(r.metrics)} NFE)" for r in rows]
    labels = [textwrap.fill(label, LABEL) for label in labels]
    figure, panels = _panels(len(names), 0.9 + 0.3 * len(rows))
    for metric, axes in zip(names, panels, strict=True):
        for place, row in enumerate(rows):
            spread = row.best[metric]
            y = [place] * len(spread.values)
            axes.plot(spread.values, y, "o", color=STUDENT, alpha=0.35, markersize=5)
            axes.plot([spread.mean], [place], "|", color=STUDENT, markersize=15, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _finish(axes, axes.xaxis, metric, teacher, x_label="lower is better")
    return figure


def line_plot(rows: list[Row], key: str, teacher: dict[str, Any]) -> Figure:
    """A panel per metric against the values of the setting `key`, which are the names of the rows.

    A bar is the range of the seeds.
    """
    names = _metrics_of(rows)
    x = [float(row.name) for row in rows]
    figure, panels = _panels(len(names), 2.8)
    for metric, axes in zip(names, panels, strict=True):
        spreads = [row.best[metric] for row in rows]
        ranges = [[s.mean - s.min for s in spreads], [s.max - s.mean for s in spreads]]
        means = [s.mean for s in spreads]
        axes.errorbar(x, means, yerr=ranges, fmt="o-", color=STUDENT, capsize=3, markersize=4)
        if min(x) > 0 and max(x) / min(x) > 8:
            log_axis(axes.xaxis)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
        _finish(axes, axes.yaxis, metric, teacher, x_label=key)
    return figure


def trade_off(rows: list[Row], teacher: dict[str, Any]) -> Figure:
    """The last metric against NFE: a line where a student is measured at several, else a mark."""
    metric = _metrics_of(rows)[-1]
    figure, (axes,) = _panels(1, 3.2 + 0.22 * len(rows))
    for index, row in enumerate(rows):
        steps = sorted(row.metrics)
        means = [row.metrics[k][metric].mean for k in steps]
        axes.plot(steps, means, marker=MARKERS[index % len(MARKERS)], markersize=5, label=row.name)
    axes.set_xscale("log", base=2)
    every = sorted({k for row in rows for k in row.metrics})
    axes.set_xticks(every, [str(k) for k in every])
    _finish(axes, axes.yaxis, metric, teacher, x_label="NFE")
    axes.legend().remove()
    figure.legend(fontsize=8, frameon=False, loc="outside lower left")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other, narrow enough to be read on a telephone."""
    figure = Figure(figsize=(WIDTH, count * height), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _metrics_of(rows: list[Row]) -> list[str]:
    return [name for name in TITLES if name in rows[0].best]


def _finish(
    axes: Axes, axis: XAxis | YAxis, metric: str, teacher: dict[str, Any], x_label: str
) -> None:
    """Add the teacher, and make `axis`, that of the metric, logarithmic.

    The legend is below, where it hides nothing.
    """
    if metric in teacher:
        line = axes.axvline if axis is axes.xaxis else axes.axhline
        line(teacher[metric], color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")
        corner = (1.0, 0.0)
        axes.legend(
            loc="upper right", bbox_to_anchor=corner, borderaxespad=2.0, fontsize=8, frameon=False
        )
    log_axis(axis)
    finish_axes(axes, title=TITLES[metric], x_label=x_label, y_label="")
    axes.set_xlabel(x_label, loc="left")
