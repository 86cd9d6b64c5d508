"""Plots: as SVG text, for reports that open without a network, or as PNG files."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, and files stay small

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from pidistill.files import replacing  # noqa: E402

TEACHER, STUDENT = "#7a869a", "#c2410c"


def line_plot(
    series: dict[str, tuple[list[float], list[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw named lines, each a list of x and a list of y, and return the SVG text."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    colors = [STUDENT, TEACHER, "#2563eb", "#15803d"]
    for (name, (x, y)), color in zip(series.items(), colors, strict=False):
        axes.plot(x, y, label=name, color=color, linewidth=1.6)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    finish_axes(axes, title=title, x_label=x_label, y_label=y_label)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return to_svg(figure)


def finish_axes(axes: Axes, *, title: str, x_label: str, y_label: str) -> None:
    """Give axes the looks that all plots share."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, which="major", color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to `file` as PNG, at once or not at all."""
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def to_svg(figure: Figure) -> str:
    """The SVG element of a figure, without the XML prologue."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def training_curves(log: list[dict[str, Any]]) -> list[str]:
    """Loss and residual against the step, from the lines of a run's log."""
    steps = [float(line["step"]) for line in log]
    plots = []
    for name, title in (
        ("loss", "Loss that is minimised"),
        ("residual", "Distance of the residual"),
    ):
        if log and name in log[0]:
            values = [float(line[name]) for line in log]
            plots.append(
                line_plot(
                    {name: (steps, values)}, title=title, x_label="step", y_label=name, log_y=True
                )
            )
    return plots
