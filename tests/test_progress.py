"""Progress: a bar on a terminal, otherwise lines."""

import io

import pytest
from rich.console import Console

from pidistill.progress import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_how_many_are_done(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress("sampling", 10, "samples", console=console) as advance:
        advance(4)
        advance(6, "at last")
    for word in ("sampling", "10/10", "samples/s", "at last"):
        assert word in console.file.getvalue()
