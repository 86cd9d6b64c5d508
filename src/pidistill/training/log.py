"""What a run writes for people to look at, and how to read it without torch."""

import json
from pathlib import Path
from typing import Any

LOG_FILE = "metrics.jsonl"
"""In a run folder: one JSON object a line."""

PREVIEWS = "previews"
"""In a run folder: grids of samples."""

PREVIEW_COLUMNS = 10
"""Samples in a row of such a grid."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run's log, up to the first that is cut off or is no entry."""
    path = folder / LOG_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or "step" not in entry:
            break
        entries.append(entry)
    return entries
