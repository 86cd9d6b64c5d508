"""Plots in a common style: matplotlib figures, without pyplot or global state, as SVG or PNG."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, MaxNLocator, NullLocator
from PIL import Image

from pidistill.files import replacing

TEACHER, STUDENT = "#7a869a", "#c2410c"
MOST_TICKS = 8
"""On a logarithmic axis."""


def line_plot(points: Sequence[tuple[float, float]], *, title: str, y_label: str) -> Figure:
    """Plot positive values of a student against the training step, on a logarithmic axis."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color=STUDENT, linewidth=1.6)
    log_axis(axes.yaxis)
    finish_axes(axes, title=title, x_label="step", y_label=y_label)
    return figure


def log_axis(axis: XAxis | YAxis) -> None:
    """Make an axis logarithmic, with plain numbers for ticks, few enough to be read."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(_RoundNumbers())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_locator(NullLocator())


class _RoundNumbers(Locator):
    """Ticks of a logarithmic axis: 1, 2 and 5, or powers of ten; in a narrow range, equal steps."""

    def __call__(self) -> Sequence[float]:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        low, high = sorted((vmin, vmax))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        powers = [10.0**decade for decade in decades]
        few = [powers[::stride] for stride in range(1, len(powers) + 1)]
        for ticks in ([digit * power for power in powers for digit in (1, 2, 5)], *few):
            seen = [tick for tick in ticks if low <= tick <= high]
            if len(seen) <= MOST_TICKS:
                break
        return seen if len(seen) > 2 else MaxNLocator(5).tick_values(low, high)


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
