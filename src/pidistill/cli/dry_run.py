"""`--dry-run`: what a run would take, as a table."""

import datetime
from typing import TYPE_CHECKING, Any

from pidistill.cli.console import Out, duration

if TYPE_CHECKING:
    from pidistill.training.config import RunConfig


def print_estimate(out: Out, settings: "RunConfig") -> None:
    """Measure a few steps of the run that `settings` describe and print what it would take."""
    from pidistill.training.estimate import estimate

    facts = estimate(settings)
    now = datetime.datetime.now().astimezone()
    end = now + datetime.timedelta(seconds=facts["seconds"])
    facts["end"] = end.isoformat(timespec="seconds")
    rows = [
        [name, f"{size['parameters']:,}", _amount(size["bytes"])]
        for name, size in facts["models"].items()
    ]
    out.table("models", ["", "parameters", "size"], rows)
    titles = {"peak": f"peak, measured on {facts['device']}", "other_networks": "other networks"}
    memory = [[titles.get(key, key), _amount(size)] for key, size in facts["memory"].items()]
    out.table("memory of one process", ["", "size"], memory)
    out.table("run", ["", ""], _run_rows(facts, end))
    out.say("nothing was written; measured on a few steps, without checkpoints and previews")
    out.result(facts)


def _run_rows(facts: dict[str, Any], end: datetime.datetime) -> list[list[str]]:
    per_process = f"{facts['micro_batches_per_process']} x {facts['micro_batch']}"
    rows = [
        ["processes", f"{facts['processes']} ({facts['strategy']})"],
        ["batch", f"{facts['batch_size']:,} ({per_process} in each process)"],
        ["student evaluations a step", f"{facts['student_evaluations']:,}"],
        ["teacher evaluations a step", f"{facts['teacher_evaluations']:,}"],
        ["teacher evaluations of the run", f"{facts['teacher_evaluations_in_all']:,}"],
        ["seconds a step", f"{facts['seconds_per_step']:.4g}"],
        ["images/s", f"{facts['images_per_second']:,.4g}"],
        ["checkpoint", _amount(facts["checkpoint_bytes"])],
    ]
    if facts["preparation_seconds"]:
        rows.append(["before the first step", duration(facts["preparation_seconds"])])
    return [
        *rows,
        [f"all {facts['max_train_steps']:,} steps", duration(facts["seconds"])],
        ["end", f"{end:%Y-%m-%d %H:%M}"],
    ]


def _amount(size: float) -> str:
    """Bytes for people to read."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
