"""Runs as one page that opens without a network: a table, curves, the newest samples."""

import base64
import html
import importlib.resources
import string
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pidistill.evaluation.plots import to_svg
from pidistill.watching.curves import Panel, panels
from pidistill.watching.status import RunStatus, cells, notes

REFRESH_SECONDS = 10
"""While a run goes on, the browser reads the page again every so often."""

INK, SOFT, LINE = "#010101", "#020202", "#030303"
"""Stand for colours that the page's style sheet has, one for light and one for dark."""

RUNS = ("#010200", "#020200", "#030200", "#040200", "#050200", "#060200")
"""Stand for the runs' colours, in turn."""


def page_of(runs: list[RunStatus]) -> str:
    """The text of the page about `runs`."""
    running = any(run.running for run in runs)
    several = len(runs) > 1
    template = importlib.resources.files("pidistill") / "assets" / "watch.html"
    newest = max((str(run.facts.get("time", "")) for run in runs), default="")
    return string.Template(template.read_text("utf-8")).substitute(
        refresh=f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if running else "",
        title=html.escape(", ".join(run.folder.resolve().name for run in runs)),
        table=_table(runs),
        notes="".join(
            f"<p>{html.escape(f'{run.folder}: {line}' if several else line)}</p>"
            for run in runs
            for line in notes(run)
        ),
        plots="".join(f"<figure>{_plot(panel, len(runs))}</figure>" for panel in panels(runs)),
        samples="".join(_samples(run) for run in runs if run.preview is not None),
        footer=html.escape(f"last sign of life {newest}" if newest else ""),
    )


def _table(runs: list[RunStatus]) -> str:
    names = ("run", "state", "step", "images/s", "left", "loss")
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for index, run in enumerate(runs):
        mark = f'<b class="mark run{index % len(RUNS)}"></b>' if len(runs) > 1 else ""
        values = "".join(f"<td>{html.escape(text)}</td>" for text in cells(run))
        lines.append(
            f"<tr><td>{mark}{html.escape(str(run.folder))}</td>"
            f'<td class="{run.state}">{run.state}</td>{values}</tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def _plot(panel: Panel, runs: int) -> str:
    """The SVG of one quantity; its colours are those of the page's style sheet."""
    figure = Figure(figsize=(4.2, 2.7), layout="constrained")
    figure.patch.set_alpha(0)
    axes: Axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for curve in panel.curves:
        color = RUNS[curve.run % len(RUNS)]
        if curve.smooth != curve.values:
            axes.plot(curve.steps, curve.values, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(curve.steps, curve.smooth, color=color, linewidth=1.7)
    if panel.log:
        axes.set_yscale("log")
    axes.set_title(panel.name.replace("_", " "), loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9, color=SOFT)
    axes.tick_params(which="both", labelsize=8, color=LINE, labelcolor=SOFT)
    axes.grid(visible=True, which="major", color=LINE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(LINE)
    svg = to_svg(figure)
    for color, name in ((INK, "ink"), (SOFT, "soft"), (LINE, "line")):
        svg = svg.replace(color, f"var(--{name})")
    for index, color in enumerate(RUNS):
        svg = svg.replace(color, f"var(--run{index})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(panel.name)}"', 1)


def _samples(run: RunStatus) -> str:
    """The newest samples of a run, in a data URL."""
    assert run.preview is not None
    try:
        data = base64.b64encode(run.preview.read_bytes()).decode()
    except OSError:
        return ""  # replaced by a newer one this very moment
    caption = html.escape(f"{run.folder}, {_step_of(run.preview)}")
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img alt="samples: {caption}" src="data:image/png;base64,{data}"></figure>'
    )


def _step_of(preview: Path) -> str:
    number = preview.stem.rpartition("-")[2]
    return f"step {int(number):,}" if number.isdigit() else preview.stem
