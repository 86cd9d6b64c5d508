"""What a run says about itself: `metrics.jsonl`, the means that go into it, the best checkpoint.

Reading a log needs no torch.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pidistill.files import write_text

LOG_FILE = "metrics.jsonl"
"""In a run folder: one JSON object a line."""

PREVIEWS = "previews"
"""In a run folder: grids of samples."""

PREVIEW_COLUMNS = 10
"""Samples in a row of such a grid."""


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of the log of a run folder, up to the first that is cut off or no entry."""
    path = Path(folder) / LOG_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            break
        entries.append(entry)
    return entries


def append_to_log(folder: Path, entry: dict[str, Any]) -> None:
    """Append a line to the log of a run folder."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def truncate_log(folder: Path, step: int) -> None:
    """Drop the lines after `step`, and whatever follows a line that is damaged."""
    kept = [entry for entry in read_log(folder) if entry["step"] <= step]
    if (folder / LOG_FILE).exists():
        write_text(folder / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in kept))


class Means:
    """Means of named numbers over the steps since they were last taken."""

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        """Go on from the `sums` of another instance, or begin."""
        self.sums = sums if sums is not None else {}

    def add(self, name: str, number: float, weight: float = 1.0) -> None:
        """Take in a number that stands for `weight` measurements."""
        total = self.sums.setdefault(name, [0.0, 0.0])
        total[0] += number * weight
        total[1] += weight

    def peek(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / count for name, (total, count) in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means, and begin anew."""
        means = self.peek()
        self.sums = {}
        return means


BEST_OVER = 100
"""Steps over which the loss is averaged to tell the best checkpoint."""


@dataclasses.dataclass
class Best:
    """The running average of the loss, and the checkpoint where it was lowest so far.

    The plain mean of the first `BEST_OVER` losses, and an exponential average after that. It
    depends on the steps alone, so that it is the same however often a run is interrupted.
    """

    average: float = 0.0
    count: int = 0
    """Losses averaged."""
    step: int | None = None
    """Step of the best checkpoint; None before the first."""
    lowest: float = 0.0
    """The average at it."""

    def update(self, loss: float) -> None:
        """Take in the loss of a step."""
        self.count += 1
        self.average += (loss - self.average) / min(self.count, BEST_OVER)

    def judge(self, step: int) -> None:
        """Ask whether the checkpoint of `step`, about to be written, is the best so far."""
        if self.step is None or self.average <= self.lowest:
            self.step, self.lowest = step, self.average
