"""Plots in a common style: matplotlib figures, without pyplot or global state, as SVG or PNG."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pidistill.files import replacing

TEACHER, STUDENT = "#7a869a", "#c2410c"


def line_plot(points: Sequence[tuple[float, float]], *, title: str, y_label: str) -> Figure:
    """Plot positive values of a student against the training step, on a logarithmic axis."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color=STUDENT, linewidth=1.6)
    axes.set_yscale("log")
    finish_axes(axes, title=title, x_label="step", y_label=y_label)
    return figure


def finish_axes(axes: Axes, *, title: str, x_label: str, y_label: str) -> None:
    """Apply the common style and labels to axes."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, which="major", color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure to `path` as PNG, atomically."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def as_svg(figure: Figure) -> Markup:
    """A figure's SVG element, without the XML prologue and with text as text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def data_uri(picture: np.ndarray) -> str:
    """A picture (height, width, 3), uint8, as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
