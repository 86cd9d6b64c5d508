"""Reading a run folder: its config, its log, its teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.teachers import load_teacher
from pidistill.training.config import RunConfig, parse_config, read_toml


def read_config(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises `PidistillError` when it is missing or does not parse.
    """
    path = folder / "config.toml"
    return parse_config([read_toml(path)], origin=str(path))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run's `metrics.jsonl`; a last line that is cut off is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def teacher_of_run(folder: Path, say: Callable[[str], None]) -> Denoiser | None:
    """The teacher that the run's config names, or None, with a word to `say`, if it is not there.

    A run samples and is measured without its teacher; only comparisons with it are lost.
    """
    try:
        spec = read_config(folder).teacher
        return None if spec is None else load_teacher(spec)
    except PidistillError as error:
        say(f"without the teacher: {error}")
        return None
