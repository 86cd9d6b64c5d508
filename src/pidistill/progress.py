"""Progress on stderr: a bar on a terminal, otherwise a line now and then. Imports no torch."""

import collections
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
)

Advance = Callable[..., None]
"""Called with how many more are done and, optionally, a text to show."""

Show = Callable[[str, int, str], AbstractContextManager[Advance]]
"""Shows progress: `show(title, total, unit)` yields what counts those that are done."""

SECONDS_BETWEEN_LINES = 15.0
RECENT = 30.0
"""Seconds whose rate tells the time that remains."""


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
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[text]}"),
    )
    pace = _Pace(total, unit)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, text="", pace="")

        def advance(count: int, text: str = "") -> None:
            bar.update(task, advance=count, text=text, pace=pace.after(count))

        yield advance


def _lines(console: Console, title: str, total: int, unit: str) -> Advance:
    began = last = time.monotonic()
    pace = _Pace(total, unit)

    def advance(count: int, text: str = "") -> None:
        nonlocal last
        words, now = pace.after(count), time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and pace.done < total:
            return
        last = now
        if pace.done >= total:
            words = f"in {duration(now - began)}"
        how = ", ".join(filter(None, [words, text]))
        console.print(f"{title} {pace.done:,}/{total:,} {unit} {how}", markup=False, soft_wrap=True)

    return advance


class _Pace:
    """How many are done, and the rate of the last `RECENT` seconds, or of the last count.

    The first count only sets the start: it may hold what an earlier call did.
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.seen: collections.deque[tuple[float, int]] = collections.deque()

    def after(self, count: int) -> str:
        """Count `count` more; the rate and the remaining time in words, once they are known."""
        now = time.monotonic()
        self.done += count
        self.seen.append((now, self.done))
        while len(self.seen) > 2 and self.seen[1][0] <= now - RECENT:
            self.seen.popleft()
        then, before = self.seen[0]
        if now == then or self.done == before:
            return ""
        rate = (self.done - before) / (now - then)
        left = duration((self.total - self.done) / rate)
        per_second = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{per_second} {self.unit}/s, {left} left"


def duration(seconds: float) -> str:
    """Seconds, for people to read."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `1 step` and `2,500 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
