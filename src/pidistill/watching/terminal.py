"""Runs in a terminal: a table, curves in braille dots, samples in half blocks."""

import itertools
import math
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.color import Color
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pidistill.training.log import PREVIEW_COLUMNS
from pidistill.watching.curves import Curve, Panel, panels
from pidistill.watching.status import RunStatus, cells, notes

COLORS = ("bright_cyan", "bright_yellow", "bright_magenta", "bright_green", "bright_blue", "red")
"""Of the runs, in turn."""

STATE_COLORS = {
    "preparing": "cyan",
    "training": "green",
    "finished": "bold green",
    "stalled": "bold yellow",
    "stopped": "yellow",
    "failed": "bold red",
    "died": "bold red",
}

AXIS = 9
"""Columns of the labels at the left of a plot."""

SAMPLE_WIDTH = 12
"""A sample has at least so many columns, where its picture is as large."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille cell, by row and column; the cells begin at U+2800."""


def view(runs: list[RunStatus], console: Console, height: int | None = None) -> RenderableType:
    """Everything about `runs`, as wide as the console.

    Args:
        runs: The runs.
        console: Where it will be printed: its width and colours.
        height: Rows that there are; None takes what is needed.
    """
    drawn = panels(runs) if console.encoding.startswith("utf") else []  # others lack the dots
    across = max(1, min(len(drawn), console.width // 40))
    width = console.width // across - 1
    colored = console.color_system is not None
    head: list[RenderableType] = [_table(runs), *_notes(runs)]
    rest = math.inf if height is None else height - len(runs) - len(head) - 1
    rows = math.ceil(len(drawn) / across)
    while rows > 1 and rest < 9 * rows + 10:  # a small screen shows what matters most
        rows -= 1
    drawn = drawn[: rows * across]
    pictures = _pictures(runs, console, min(24, int(min(rest, 80)) // 2 - 2))
    picture_width = console.width // max(1, len(pictures)) - 1
    rest -= max((len(g) + 1 + math.ceil(len(t) / picture_width) for t, g in pictures), default=0)
    plot_height = 10 if height is None else max(4, min(20, int(rest) // max(1, rows) - 3))
    plots = [_panel(panel, len(runs), width, plot_height, colored) for panel in drawn]
    grids = [Group(title, *lines) for title, lines in pictures]
    return Group(
        *head,
        Columns(plots, width=width, padding=(0, 1)),
        Columns(grids, width=picture_width, padding=(0, 1)),
    )


def _table(runs: list[RunStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "images/s", "left", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)] if len(runs) > 1 else "bold"
        table.add_row(
            Text(str(run.folder), color),
            Text(run.state, STATE_COLORS.get(run.state, "dim")),
            *cells(run),
        )
    return table


def _notes(runs: list[RunStatus]) -> list[Text]:
    several = len(runs) > 1
    return [
        Text(f"{run.folder}: {line}" if several else line, overflow="fold")
        for run in runs
        for line in notes(run)
    ]


def _panel(panel: Panel, runs: int, width: int, height: int, colored: bool) -> Group:
    title = Text.assemble("\n", (panel.name, "bold"), ("  log" if panel.log else "", "dim"))
    layers: list[tuple[Curve, list[float], str]] = []
    for curve in panel.curves:
        color = COLORS[curve.run % len(COLORS)]
        if colored and runs == 1:
            layers.append((curve, curve.values, "bright_black"))
        layers.append((curve, curve.smooth, color))
    return Group(title, *plot(panel, layers, width, height))


def plot(
    panel: Panel, layers: list[tuple[Curve, list[float], str]], width: int, height: int
) -> list[Text]:
    """Draw lines with axes.

    Args:
        panel: What they are; it has the ranges.
        layers: A curve, its values (as they are or smoothed) and a colour for each line; the later
            ones cover the earlier ones.
        width: Columns, labels and all.
        height: Rows, without the axis of steps.

    Returns:
        The rows from top to bottom, and the axis of steps below.
    """
    columns = max(2, width - AXIS - 1)
    (left, right), (low, high) = panel.x_range(), panel.y_range()
    bottom, top = _scaled(low, panel.log), _scaled(high, panel.log)
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for curve, values, color in layers:
        dots: dict[tuple[int, int], int] = {}
        points = [
            (
                round((step - left) / ((right - left) or 1) * (2 * columns - 1)),
                round((top - _scaled(value, panel.log)) / ((top - bottom) or 1) * (4 * height - 1)),
            )
            for step, value in zip(curve.steps, values, strict=True)
        ]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            num = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(num + 1):
                x, y = x0 + round((x1 - x0) * i / num), y0 + round((y1 - y0) * i / num)
                cell = (y // 4, x // 2)
                dots[cell] = dots.get(cell, 0) | _DOTS[y % 4][x % 2]
        cells.update({cell: (bits, color) for cell, bits in dots.items()})
    gap = (top - bottom) / (height - 1)
    labels = {row: top - gap * row for row in (0, height // 2, height - 1)}
    lines = []
    for row in range(height):
        label = f"{10 ** labels[row] if panel.log else labels[row]:.3g}" if row in labels else ""
        line = Text(no_wrap=True).append(f"{label:>{AXIS - 1}} │", "dim")
        for column in range(columns):
            bits, color = cells.get((row, column), (0, ""))
            line.append(chr(0x2800 + bits) if bits else " ", color)
        lines.append(line)
    start, end = f"{left:,.0f}", f"step {right:,.0f}"
    lines.append(Text(f"{'':{AXIS}}└{start}{end:>{columns - len(start)}}", "dim", no_wrap=True))
    return lines


def _scaled(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _pictures(
    runs: list[RunStatus], console: Console, height: int
) -> list[tuple[Text, list[Text]]]:
    """Title and lines of the newest samples of every run that has any."""
    files = [run.preview for run in runs if run.preview is not None]
    if console.color_system is None or not console.encoding.startswith("utf"):
        # half blocks without colours are all alike, and other encodings have none
        return [(Text(f"\nsamples: {file}", overflow="fold"), []) for file in files]
    width = console.width // max(1, len(files)) - 1
    return [
        (Text(f"\nsamples: {file}", "dim", no_wrap=True), half_blocks(file, width, height))
        for file in files
    ]


def half_blocks(file: Path, width: int, height: int) -> list[Text]:
    """A grid of samples in at most `width` columns and `height` rows, two pixels a character.

    Samples that would not fit are left out, rather than all made too small to see.
    A picture that cannot be read, because it is just being replaced say, is no line at all.
    """
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return []
    tile = image.width / PREVIEW_COLUMNS
    across = max(1, min(PREVIEW_COLUMNS, width // SAMPLE_WIDTH))
    scale = min(width / (across * tile), 1.0)
    down = max(1, 2 * height // (tile * scale))
    image = image.crop((0, 0, round(across * tile), min(image.height, round(down * tile))))
    rows = min(height, max(1, round(image.height * scale / 2)))
    size = max(1, round(image.width * scale)), 2 * rows
    image = image.resize(size, Image.Resampling.BOX)
    data = image.tobytes()
    lines = []
    for row in range(0, size[1], 2):
        line = Text(no_wrap=True)
        for column in range(size[0]):
            upper, lower = (3 * ((row + below) * size[0] + column) for below in (0, 1))
            color = Color.from_rgb(*data[upper : upper + 3])
            background = Color.from_rgb(*data[lower : lower + 3])
            line.append("▀", Style(color=color, bgcolor=background))
        lines.append(line)
    return lines
