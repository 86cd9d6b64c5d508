"""`--dry-run`: what a run would take, as a table."""

import datetime
from typing import TYPE_CHECKING

from pidistill.cli.console import Out, duration

if TYPE_CHECKING:
    from pidistill.training.config import RunConfig


def print_estimate(out: Out, config: "RunConfig") -> None:
    """Measure a few steps of the run that `config` describes and print what it would take."""
    from pidistill.report.numbers import figures
    from pidistill.training.estimate import estimate

    facts = estimate(config)
    now = datetime.datetime.now().astimezone()
    end = now + datetime.timedelta(seconds=facts["seconds"])
    facts["end"] = end.isoformat(timespec="seconds")
    per_process = f"{facts['micro_batches_per_process']} x {facts['micro_batch']}"
    rows = {
        **{f"parameters of the {key}": n for key, n in facts["parameters"].items()},
        "processes": f"{facts['processes']} ({facts['strategy']})",
        "batch": f"{facts['batch_size']:,} ({per_process} in each process)",
        f"peak memory of a process ({facts['device']})": f"{facts['peak_memory'] / 1e9:.2f} GB",
        "student evaluations a step": facts["student_evaluations"],
        "teacher evaluations a step": facts["teacher_evaluations"],
        "teacher evaluations in all": facts["teacher_evaluations_in_all"],
        "seconds a step": facts["seconds_per_step"],
        "images/s": facts["images_per_second"],
        "before the first step": duration(facts["preparation_seconds"]),
        f"all {facts['max_train_steps']:,} steps": duration(facts["seconds"]),
        "end": f"{end:%Y-%m-%d %H:%M}",
    }
    cells = [[key, v if isinstance(v, str) else figures(v)] for key, v in rows.items()]
    out.table("what the run would take", ["", ""], cells)
    out.say("nothing was written; measured on a few steps, without checkpoints and previews")
    out.result(facts)
