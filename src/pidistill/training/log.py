"""The log of a run, `metrics.jsonl`, and the best checkpoint. Imports no torch."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill.files import write_text

LOG_FILE = "metrics.jsonl"
"""In a run folder: one JSON object per line."""

PREVIEWS = "previews"
"""In a run folder: grids of samples."""

PREVIEW_COLUMNS = 10
"""About the number of samples per row of such a grid."""
MOST_COLUMNS = 20


def preview_columns(num_classes: int) -> int:
    """Samples per row, so that each class has its columns if there are not too many."""
    if not 1 < num_classes <= MOST_COLUMNS:
        return PREVIEW_COLUMNS
    return num_classes * max(1, round(PREVIEW_COLUMNS / num_classes))


@dataclasses.dataclass(frozen=True)
class StepReport:
    """Progress after an optimizer step."""

    step: int
    """Optimizer steps done."""
    images: int
    """Samples seen."""
    seconds: float
    """Training time, without interruptions."""
    read_loss: Callable[[], float]
    """Reads `loss`."""

    @property
    def loss(self) -> float:
        """Mean loss of the student in the step, over this process's share of the batch.

        Reading it waits for the device.
        """
        return self.read_loss()


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's log, up to the first line that is truncated or invalid."""
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
    """Append an entry to a run's log."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def truncate_log(folder: Path, step: int) -> None:
    """Drop the entries after `step` and everything from the first damaged line on."""
    kept = [entry for entry in read_log(folder) if entry["step"] <= step]
    if (folder / LOG_FILE).exists():
        write_text(folder / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in kept))


BEST_OVER = 100
"""Number of steps over which the loss is averaged to find the best checkpoint."""


@dataclasses.dataclass
class Best:
    """The checkpoint where the running average of the student's loss has been lowest.

    The average is the plain mean of the first `BEST_OVER` losses, then exponential. It depends only
    on the steps, so interruptions do not change it.
    """

    step: int | None = None
    """Step of the best checkpoint; None before the first."""
    lowest: float = 0.0
    """The average at that step."""

    def judge(self, step: int, average: float) -> None:
        """Record `step`, whose checkpoint is about to be written, if it is the best so far."""
        if self.step is None or average <= self.lowest:
            self.step, self.lowest = step, average
