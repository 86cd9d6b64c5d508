"""What the verbs print: tables, progress, JSON; and how Ctrl-C is caught."""

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pidistill.processes import is_main_process

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Put one JSON object on stdout, the rest on stderr."
)
device_option = click.option(
    "--device", default=None, metavar="NAME", help="Where to compute, such as cuda or cpu."
)
steps_option = click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=None,
    metavar="K",
    help="Evaluations of a student (default: as trained, 1), or a teacher's nodes (default 40).",
)
ema_option = click.option(
    "--ema", type=float, default=None, metavar="RATE", help="Averaging rate of the weights; 0: raw."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Samples evaluated at once; it does not change them.",
)

HEARTBEAT_SECONDS = 15.0
"""Where stderr is no terminal, progress is one line every so often."""


class Out:
    """Where a verb prints: people's tables on stdout, or JSON there and the rest on stderr.

    Of several processes, the first one prints.
    """

    def __init__(self, as_json: bool) -> None:
        """Say whether stdout is for one JSON object."""
        quiet = not is_main_process()
        self.as_json = as_json and not quiet
        self.stderr = Console(stderr=True, highlight=False, quiet=quiet)
        self.people = self.stderr if as_json else Console(highlight=False, quiet=quiet)
        level = logging.ERROR if quiet else logging.INFO
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        logging.getLogger("httpx").setLevel(logging.WARNING)

    def say(self, text: str) -> None:
        """Print a line for people."""
        self.people.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table for people; all columns but the first are numbers."""
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
        )
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.people.print(table)

    def result(self, content: dict[str, Any]) -> None:
        """Print the JSON object, where it was asked for."""
        if self.as_json:
            click.echo(json.dumps(content, allow_nan=False))

    @contextlib.contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        """Show progress on stderr: a bar on a terminal, otherwise a line now and then.

        Yields a function to call with how many more are done, and more text to show.
        """
        if self.stderr.is_terminal and not self.stderr.quiet:
            with Progress(
                TextColumn(title),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.stderr,
            ) as bar:
                task = bar.add_task(title, total=total, text="", rate="")
                began, done = time.monotonic(), 0

                def advance(count: int, text: str = "") -> None:
                    nonlocal done
                    done += count
                    rate = done / max(time.monotonic() - began, 1e-9)
                    bar.update(task, advance=count, text=text, rate=f"{rate:.0f} {unit}/s")

                yield advance
        else:
            yield self._heartbeat(title, total, unit)

    def _heartbeat(self, title: str, total: int, unit: str) -> Callable[..., None]:
        began = last = time.monotonic()
        done = 0

        def advance(count: int, text: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last < HEARTBEAT_SECONDS and done < total:
                return
            last = now
            rate = done / max(now - began, 1e-9)
            left = (total - done) / max(rate, 1e-9)
            self.stderr.print(
                f"{title} {done}/{total} {rate:.0f} {unit}/s, {left:.0f} s left {text}".rstrip(),
                markup=False,
                soft_wrap=True,
            )

        return advance


STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; what schedulers send before they kill; what SLURM sends early, where it is asked to
(`sbatch --signal=USR1@90`); a terminal that closes."""


@contextlib.contextmanager
def stoppable(out: Out) -> Iterator[Callable[[], bool]]:
    """Turn the first of `STOP_SIGNALS` into a request to stop; a second Ctrl-C stops at once.

    A signal that is ignored, as SIGHUP is under `nohup`, stays so. Yields a function that says
    whether a stop was asked for.
    """
    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked = True
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                out.stderr.print(
                    f"stopping ({name}): the state is saved after this step; Ctrl-C to stop at once"
                )

    previous = {}
    for name in STOP_SIGNALS:
        number = getattr(signal, name)
        if signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def best_device(name: str | None) -> str:
    """The device to compute on: the one named, else an accelerator where there is one.

    Raises `PidistillError` when there is none of that name.
    """
    import torch

    from pidistill.errors import PidistillError

    if name is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PidistillError(f"device {name!r} is not usable here: {reason}") from None
    return name
