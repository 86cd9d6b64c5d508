"""Plots of a comparison: every seed is a dot, the mean is a mark, the teacher is a line."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from pidistill.comparison.plan import Section
from pidistill.comparison.recipe import file_name
from pidistill.comparison.table import Comparison, Row
from pidistill.report.plots import STUDENT, TEACHER, finish_axes

TITLES = {
    "rms_error": "RMS distance to the teacher's solution",
    "frechet_distance": "Frechet distance to the data",
}
"""The metrics that are plotted."""
MARKERS = "os^Dv<>Ph*X"


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
    size = (4.2 * len(names) + 1.6, 1.0 + 0.34 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    labels = [r.name if min(r.metrics) == 1 else f"{r.name} ({min(r.metrics)} NFE)" for r in rows]
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
    figure = Figure(figsize=(4.6 * len(names), 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for metric, axes in zip(names, panels, strict=True):
        spreads = [row.best[metric] for row in rows]
        ranges = [[s.mean - s.min for s in spreads], [s.max - s.mean for s in spreads]]
        means = [s.mean for s in spreads]
        axes.errorbar(x, means, yerr=ranges, fmt="o-", color=STUDENT, capsize=3, markersize=4)
        if min(x) > 0 and max(x) / min(x) > 8:
            axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())
        _finish(axes, axes.yaxis, metric, teacher, x_label=key)
    return figure


def trade_off(rows: list[Row], teacher: dict[str, Any]) -> Figure:
    """The last metric against NFE: a line where a student is measured at several, else a mark."""
    metric = _metrics_of(rows)[-1]
    figure = Figure(figsize=(7.4, 1.2 + 0.24 * max(9, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        steps = sorted(row.metrics)
        means = [row.metrics[k][metric].mean for k in steps]
        axes.plot(steps, means, marker=MARKERS[index % len(MARKERS)], markersize=5, label=row.name)
    axes.set_xscale("log", base=2)
    every = sorted({k for row in rows for k in row.metrics})
    axes.set_xticks(every, [str(k) for k in every])
    _finish(axes, axes.yaxis, metric, teacher, x_label="NFE")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _metrics_of(rows: list[Row]) -> list[str]:
    return [name for name in TITLES if name in rows[0].best]


def _finish(
    axes: Axes, axis: XAxis | YAxis, metric: str, teacher: dict[str, Any], x_label: str
) -> None:
    """Add the teacher, and make `axis`, that of the metric, logarithmic.

    The legend is beside the title, where it hides nothing. Ticks are plain numbers, few enough to
    be read.
    """
    if metric in teacher:
        line = axes.axvline if axis is axes.xaxis else axes.axhline
        line(teacher[metric], color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")
        place = (1.0, 1.0)
        axes.legend(
            loc="lower right", bbox_to_anchor=place, borderaxespad=0.2, fontsize=8, frameon=False
        )
    axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())
    finish_axes(axes, title=TITLES[metric], x_label=x_label, y_label="")
