"""Where a run stands, by the files in its folder alone, and which command comes next."""

import shlex
from pathlib import Path
from typing import Any

from pidistill.cli.console import Out
from pidistill.errors import PidistillError
from pidistill.files import is_held, read_json
from pidistill.processes import is_main_process
from pidistill.report.numbers import figures
from pidistill.settings import read_toml
from pidistill.training.config import CONFIG_FILE
from pidistill.training.log import LOG_FILE, read_log

COLUMNS = {
    "steps": "step",
    "images": "images",
    "seconds": "seconds",
    "images/s": "images_per_second",
    "teacher evaluations": "teacher_evals",
    "loss": "loss",
}
"""Which fact each column of the table at the end of a run shows."""


def standing(folder: Path) -> dict[str, Any]:
    """Where the run in `folder` stands, as JSON values; what is not known is left out.

    Always there: `state` (running, finished or stopped) and `next`, the command to type.

    Raises `PidistillError` when the run's config or its log is damaged.
    """
    config, log = read_toml(folder / CONFIG_FILE), read_log(folder)
    method, total = config.get("method"), config.get("max_train_steps")
    facts = {
        "trained_by": method.get("name") if isinstance(method, dict) else None,
        "trained_on": config.get("teacher") or config.get("data"),
        "seed": config.get("seed"),
        "max_train_steps": total,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    if log:
        try:
            facts.update(_progress(log[-1], total))
        except (ArithmeticError, KeyError, TypeError) as error:
            raise PidistillError(f"{folder / LOG_FILE} holds no log of a run: {error}") from error
    facts["state"] = "finished" if log and log[-1]["step"] == total else "stopped"
    if is_held(folder):
        facts["state"] = "running"
    facts["next"] = _next_command(folder, facts)
    return facts


def _progress(line: dict[str, Any], total: Any) -> dict[str, Any]:
    """What the last line of the log says, and what follows from it."""
    facts = {key: line[key] for key in ("step", "images", "seconds", "teacher_evals", "loss")}
    if facts["seconds"] > 0:
        facts["images_per_second"] = facts["images"] / facts["seconds"]
        if facts["step"] < total:
            facts["seconds_left"] = (total - facts["step"]) * facts["seconds"] / facts["step"]
    return facts


def _next_command(folder: Path, facts: dict[str, Any]) -> str:
    name, is_teacher = shlex.quote(str(folder)), facts.get("trained_by") == "denoising"
    if facts["state"] == "running":
        return f"pidistill inspect {name}"
    if facts["state"] == "stopped":
        data = shlex.quote(str(facts.get("trained_on")))
        verb = f"train-teacher {data}" if is_teacher else "distill"
        return f"pidistill {verb} --out {name} --resume"
    if is_teacher:
        return f"pidistill distill --teacher {shlex.quote(f'native:{folder}')} --out DIR"
    shape = read_json(folder / "network.json").get("sample_shape")
    suffix = "png" if isinstance(shape, list) and len(shape) == 3 else "npz"
    return f"pidistill sample {name} -n 100 --out samples.{suffix}"


def print_end(out: Out, folder: Path, what: str) -> None:
    """Print what the training of `what`, the student or the teacher, took and came to."""
    if not is_main_process():
        return
    facts = standing(folder)
    out.say(f"{folder} holds the {what} after {facts['step']} steps")
    out.table("", ["", *COLUMNS], [[what, *(figures(facts.get(key)) for key in COLUMNS.values())]])
    out.say(f"next: {facts['next']}")
    keys = [key for key in COLUMNS.values() if key in facts]
    out.result({"out": str(folder), **{key: facts[key] for key in keys}})


def print_stop(out: Out, folder: Path, step: int) -> None:
    """Say that a run was saved at `step`, and how to continue."""
    if not is_main_process():
        return
    facts = standing(folder)
    out.stderr.print(
        f"{folder} is saved at step {step} of {facts['max_train_steps']}; next: {facts['next']}",
        markup=False,
        soft_wrap=True,
    )
