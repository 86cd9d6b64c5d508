"""How a run is doing, from the files in its folder alone."""

import dataclasses
import datetime
import json
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from pidistill.errors import PidistillError
from pidistill.training.heartbeat import HEARTBEAT_FILE, read_heartbeat
from pidistill.training.log import LOG_FILE, PREVIEWS, read_log

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STATES = ("preparing", "training", "finished", "stopped", "failed")
"""What a run says of itself in its heartbeat."""

RUNNING = ("waiting", "preparing", "training", "stalled")
"""States that may still change by themselves; the others are final."""

STALLED_SECONDS = 120.0
"""A run that has said nothing for so long, and for many steps, is called stalled."""


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What there is to see of a run."""

    folder: Path
    state: str
    """`waiting` (nothing is there yet), `preparing`, `training`, `stalled` (no sign of life, but
    its process is not known to be gone), `died` (its process is gone without a word), `stopped`,
    `failed` or `finished`."""
    note: str
    """More about the state, in a line; may be empty."""
    facts: dict[str, Any]
    """What is known of step, images, speed, remaining time, ...; see `training.heartbeat`."""
    log: list[dict[str, Any]]
    """The lines of its log."""
    preview: Path | None
    """The newest picture of samples."""
    next_command: str | None
    """What to do now that it has ended."""

    @property
    def running(self) -> bool:
        """Whether the state may still change by itself."""
        return self.state in RUNNING

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, of the log its last line; what is unknown is left out."""
        last = {key: value for key, value in (self.log or [{}])[-1].items() if is_number(value)}
        known = {
            "dir": str(self.folder),
            "state": self.state,
            "note": self.note or None,
            **self.facts,
            "log": last,
            "preview": None if self.preview is None else str(self.preview),
            "next": self.next_command,
        }
        return {key: value for key, value in known.items() if value is not None}


def look(folder: Path, now: datetime.datetime | None = None) -> RunStatus:
    """See how the run in `folder` is doing.

    Args:
        folder: The run folder, which may be empty still.
        now: The time to count from; None is the present.

    Raises:
        PidistillError: `folder` is not there, or holds something else than a run.
    """
    if not folder.is_dir():
        raise PidistillError(f"{folder} is not a folder; expected the --out of a run")
    log, config, beat = read_log(folder), _read_config(folder), read_heartbeat(folder)
    if not (log or config or beat) and not (folder / LOG_FILE).exists():
        return _without_a_run(folder)
    facts = _facts(log, config, beat)
    state = str(beat.get("state"))
    if state not in STATES:
        beat, state = {}, _state_of_log(facts)
    note = str(beat.get("error", ""))
    if not beat:
        note = "no heartbeat: all that is known is the log" if state != "waiting" else ""
    elif state in RUNNING:
        state, note = _signs_of_life(state, beat, now or datetime.datetime.now(_UTC))
    if state not in RUNNING:
        facts.pop("remaining_seconds", None)
    previews = sorted((folder / PREVIEWS).glob("*.png"))
    return RunStatus(
        folder=folder,
        state=state,
        note=note,
        facts=facts,
        log=log,
        preview=previews[-1] if previews else None,
        next_command=next_command(folder, state, config, _is_image(folder)),
    )


def next_command(folder: Path, state: str, config: dict[str, Any], is_image: bool) -> str | None:
    """What to do with the run in `folder` once it has ended; None while it runs.

    Args:
        folder: The run folder.
        state: A state of `RunStatus`.
        config: The run's config, as a table; it may be empty.
        is_image: Whether its samples are pictures.
    """
    name = shlex.quote(str(folder))
    method = config.get("method")
    is_teacher = isinstance(method, dict) and method.get("name") == "denoising"
    if state in RUNNING or not config:
        return None
    if state != "finished":
        verb = f"train-teacher {shlex.quote(str(config.get('data')))}" if is_teacher else "distill"
        return f"pidistill {verb} --out {name} --resume"
    if is_teacher:
        return f"pidistill distill --teacher {shlex.quote(f'native:{folder}')} --out DIR"
    return f"pidistill sample {name} -n 100 --out samples.{'png' if is_image else 'npz'}"


def cells(run: RunStatus) -> list[str]:
    """For people: step, images a second, remaining time, loss; what is unknown is a dash."""
    facts = run.facts
    step, total = facts.get("step"), facts.get("max_train_steps")
    progress = "-" if step is None else f"{step:,}"
    if step is not None and total:
        progress += f" / {total:,} ({step / total:.0%})"
    speed = facts.get("recent_images_per_second" if run.running else "images_per_second")
    left = facts.get("remaining_seconds") if run.state == "training" else None
    return [
        progress,
        "-" if speed is None else f"{speed:,.0f}",
        "-" if left is None else duration(left),
        "-" if facts.get("loss") is None else f"{facts['loss']:.4g}",
    ]


def notes(run: RunStatus) -> list[str]:
    """Lines of text about a run: its preparation, what is wrong with it, what to do next."""
    lines = []
    work: dict[str, Any] = run.facts.get("preparation", {})
    if work:
        done, total = work["done"], work["total"]
        share = f" ({done / total:.0%})" if total else ""
        lines.append(f"{work.get('title')}: {done:,} of {total:,} {work.get('unit')}{share}")
    if run.note:
        lines.append(f"{run.state}: {run.note}")
    if run.next_command:
        lines.append(f"next: {run.next_command}")
    return lines


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


_UTC = datetime.timezone.utc


def _without_a_run(folder: Path) -> RunStatus:
    others = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if others:
        raise PidistillError(
            f"{folder} is no run folder: it holds {others[0]}, but no {HEARTBEAT_FILE}, {LOG_FILE} "
            "or config.toml; expected the --out of distill or train-teacher"
        )
    return RunStatus(folder, "waiting", "nothing is there yet", {}, [], None, None)


def _read_config(folder: Path) -> dict[str, Any]:
    """The run's config as a table, unchecked; empty where it cannot be read."""
    try:
        return tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_image(folder: Path) -> bool:
    try:
        shape = json.loads((folder / "network.json").read_text(encoding="utf-8"))["sample_shape"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return isinstance(shape, list) and len(shape) == 3 and shape[0] in (1, 3)


def _facts(
    log: list[dict[str, Any]], config: dict[str, Any], beat: dict[str, Any]
) -> dict[str, Any]:
    """What is known of the run's progress; its heartbeat is newer than its log."""
    last = (log or [{}])[-1]
    known: dict[str, Any] = {"max_train_steps": config.get("max_train_steps")}
    known.update({key: last.get(key) for key in ("step", "images", "loss")})
    known.update({key: value for key, value in beat.items() if is_number(value)})
    facts = {key: value for key, value in known.items() if is_number(value)}
    facts.update({key: beat[key] for key in ("host", "started", "time", "error") if key in beat})
    work = beat.get("preparation")
    facts.pop("preparation", None)
    if isinstance(work, dict) and all(is_number(work.get(key)) for key in ("done", "total")):
        facts["preparation"] = work
    return facts


def _state_of_log(facts: dict[str, Any]) -> str:
    """The state of a run that has no heartbeat."""
    if "step" not in facts:
        return "waiting"
    return "finished" if facts["step"] >= facts.get("max_train_steps", 0) else "stopped"


def _signs_of_life(state: str, beat: dict[str, Any], now: datetime.datetime) -> tuple[str, str]:
    """The state of a run whose last word was that it goes on, and a note on it."""
    try:
        age = max(0.0, (now - datetime.datetime.fromisoformat(str(beat["time"]))).total_seconds())
        started = datetime.datetime.fromisoformat(str(beat["started"])).timestamp()
        pid = int(beat["pid"])
    except (KeyError, TypeError, ValueError):
        return state, "the heartbeat is damaged"
    here = beat.get("host") == socket.gethostname()
    if here and not _is_alive(pid, started):
        return "died", f"process {pid} is gone without a word, last heard of {duration(age)} ago"
    if age <= max(STALLED_SECONDS, 10 * _seconds_a_step(beat)):
        return state, ""
    where = f"process {pid} is there" if here else f"it is process {pid} on {beat.get('host')}"
    return "stalled", f"no sign of life for {duration(age)}; {where}"


def _seconds_a_step(beat: dict[str, Any]) -> float:
    speed, step = beat.get("images_per_second"), beat.get("step")
    if not (is_number(speed) and is_number(step) and is_number(beat.get("images"))):
        return 0.0
    return float(beat["images"] / step / speed) if speed and step else 0.0


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process that was there at `started` still is; its number may have a new owner."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < started + 2
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def duration(seconds: float) -> str:
    """A time span for people: `12 s`, `3 min 20 s`, `5 h 10 min`, `2 d 4 h`."""
    total = round(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if total >= size:
            return f"{total // size} {unit} {total % size // below} {small}"
    return f"{total // 60} min {total % 60} s" if total >= 60 else f"{total} s"
