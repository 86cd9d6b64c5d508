"""`pidistill watch`: how runs are doing, drawn in the terminal or as a page."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pidistill.cli.console import Out, json_option

if TYPE_CHECKING:
    from pidistill.watching.status import RunStatus

REFRESH_SECONDS = 2.0
PAGE_SECONDS = 10.0
"""Seconds between two looks in the terminal, and between two versions of the page."""


@click.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--once", is_flag=True, help="Print once and exit, as where stdout is no terminal.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Write a page, too; it opens without a network.",
)
@json_option
def watch(folders: tuple[Path, ...], once: bool, page: Path | None, as_json: bool) -> None:
    """Show the state, the curves and the newest samples of the runs in DIR...

    Goes on until all of them have ended, or Ctrl-C; the runs do not notice.
    """
    out = Out(as_json)
    if page is not None and page.is_dir():
        raise click.ClickException(f"--html {page} is a folder; expected a file to write")
    from pidistill.watching.status import look

    runs = [look(folder) for folder in folders]
    if not (once or as_json) and out.people.is_terminal:
        runs = _watch_on(out, list(folders), page)
    if page is not None:
        _write_page(page, runs)
    if not as_json:
        from pidistill.watching.terminal import view

        out.people.print(view(runs, out.people))
    if page is not None:
        out.say(f"wrote {page}")
    states = [run.as_json() for run in runs]
    out.result(states[0] if len(states) == 1 else {"runs": states})


def _watch_on(out: Out, folders: list[Path], page: Path | None) -> "list[RunStatus]":
    """Draw the runs again and again until all have ended; returns how they ended."""
    from rich.live import Live

    from pidistill.watching.status import look
    from pidistill.watching.terminal import view

    console = out.people
    written = float("-inf")
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            runs = [look(folder) for folder in folders]
            live.update(view(runs, console, console.height), refresh=True)
            if page is not None and time.monotonic() - written >= PAGE_SECONDS:
                _write_page(page, runs)
                written = time.monotonic()
            if not any(run.running for run in runs):
                return runs
            time.sleep(REFRESH_SECONDS)


def _write_page(page: Path, runs: "list[RunStatus]") -> None:
    from pidistill.training.heartbeat import replace_text
    from pidistill.watching.page import page_of

    page.parent.mkdir(parents=True, exist_ok=True)
    replace_text(page, page_of(runs))
