"""What the verbs share: options, and how they print tables, progress and JSON."""

import json
import logging
import shlex
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pidistill.errors import PidistillError
from pidistill.processes import is_main_process
from pidistill.progress import Advance, progress
from pidistill.progress import counted as counted
from pidistill.progress import duration as duration

PATH = click.Path(path_type=Path)
POSITIVE, NOT_NEGATIVE = click.IntRange(min=1, max=2**40), click.IntRange(min=0)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Put one JSON object on stdout, the rest on stderr."
)
device_option = click.option(
    "--device", metavar="NAME", help="Where to compute, such as cuda or cpu."
)
steps_option = click.option(
    "--steps",
    type=click.IntRange(min=1, max=100_000),
    metavar="K",
    help="Evaluations of a student (default: as trained), or nodes of a teacher (default: 40).",
)
refine_option = click.option(
    "--refine",
    type=NOT_NEGATIVE,
    default=0,
    metavar="R",
    help="Further evaluations that refine the samples of a flow map.",
)
ema_option = click.option(
    "--ema", type=float, metavar="RATE", help="Averaging rate of the weights; 0 for raw weights."
)
teacher_option = click.option(
    "--teacher",
    metavar="SPEC",
    help="The run's teacher, if it is no longer where the run's config says.",
)
batch_size_option = click.option(
    "--batch-size",
    type=POSITIVE,
    default=256,
    help="Samples evaluated at once; does not change the samples.",
)


def _in_one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A Python warning for people, without the source line that raised it."""
    return f"warning: {message}\n"


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
        warnings.formatwarning = _in_one_line

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

    def progress(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show progress on stderr; arguments as in `pidistill.progress.progress`."""
        return progress(title, total, unit, console=self.stderr)


def command_line() -> str:
    """The command that is running, as it was typed."""
    arguments = click.get_current_context().find_root().obj["arguments"]
    return shlex.join(["pidistill", *arguments])


def best_device(name: str | None) -> str:
    """The device to compute on: the one named, else an accelerator where there is one.

    Raises `PidistillError` when there is none of that name.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator()
        return accelerator.type if accelerator and torch.accelerator.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PidistillError(f"device {name!r} is not usable here: {reason}") from error
    return name
