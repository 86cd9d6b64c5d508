"""Progress on stderr: a bar on a terminal, otherwise a line now and then. Imports no torch."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""Called with how many more are done and, optionally, a text to show."""

Show = Callable[[str, int, str], AbstractContextManager[Advance]]
"""Shows progress: `show(title, total, unit)` yields what counts those that are done."""

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def no_progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda count, text="": None


@contextlib.contextmanager
def progress(
    title: str, total: int, unit: str, *, console: Console | None = None
) -> Iterator[Advance]:
    """Show how many of `total`, counted in `unit` (a plural), are done; see `Advance`.

    It goes to `console`, or to stderr.
    """
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal or console.quiet:
        yield _lines(console, title, total, unit)
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, text="", rate="")

        def advance(count: int, text: str = "") -> None:
            rate = f"{bar.tasks[0].speed or 0:.0f} {unit}/s"
            bar.update(task, advance=count, text=text, rate=rate)

        yield advance


def _lines(console: Console, title: str, total: int, unit: str) -> Advance:
    began = last = time.monotonic()
    done = 0

    def advance(count: int, text: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = done / max(now - began, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        line = f"{title} {done}/{total} {rate:.0f} {unit}/s, {left:.0f} s left {text}"
        console.print(line.rstrip(), markup=False, soft_wrap=True)

    return advance
