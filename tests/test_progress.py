"""Progress: a bar on a terminal, otherwise lines."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pidistill import progress as module
from pidistill.progress import counted, duration, progress


def test_durations_and_numbers_read_like_words():
    seconds = {0.44: "0.4 s", 44.4: "44 s", 444: "7 minutes", 44444: "12.3 hours"}
    assert {s: duration(s) for s in seconds} == seconds
    assert [counted(n, "step") for n in (1, 0, 2500)] == ["1 step", "0 steps", "2,500 steps"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_how_many_are_done(terminal, clock):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress("sampling", 10, "samples", console=console) as advance:
        advance(2)
        clock[0] += 20
        advance(4)
        clock[0] += 1
        advance(4, "at last")
    words = ("sampling", "10/10", "at last", "0.38 samples/s" if terminal else "in 21 s")
    assert all(word in console.file.getvalue() for word in words)


@pytest.mark.parametrize("done_before", [0, 500_000])
def test_the_remaining_time_follows_from_the_recent_rate(done_before, clock):
    """What an earlier call did does not count, and neither does the rate of long ago."""
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    total = done_before + 100_000
    with progress("training", total, "images", console=console) as advance:
        advance(done_before + 1000)
        for seconds in [16.0] * 40 + [1.0] * 40:
            clock[0] += seconds
            advance(1000)
    *_, line = console.file.getvalue().splitlines()
    assert line == f"training {done_before + 71_000:,}/{total:,} images 1,000 images/s, 29 s left"
    assert "62 images/s" in console.file.getvalue()
