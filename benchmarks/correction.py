"""Measure students of the preset `matched`, with changed settings, and append a line per run.

    python benchmarks/correction.py digits NAME '{"max_train_steps": 2500, "batch_size": 128}'

The third argument holds the settings that differ from the preset, as JSON. Each run is measured in
1, 2 and 4 evaluations (`--steps`): error, FD, precision and recall, the teacher's beside them. The
lines in benchmarks/results/correction.json were made with this script on two shared CPU cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pidistill
from pidistill.library import drive, resolve_config
from pidistill.machine import machine
from pidistill.progress import no_progress
from pidistill.training.assemble import build_trainer

NUM = {"digits": (5000, 5000), "glyphs": (2000, 500)}
"""Samples for FD, precision and recall, and samples for the error, by data set."""


def main() -> None:
    """Train, measure, and append to the file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=NUM)
    parser.add_argument("name", help="what the run is called in the results")
    parser.add_argument("settings", type=json.loads, help="settings over the preset, as JSON")
    parser.add_argument("--preset", default="matched")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/correction.jsonl"))
    given = parser.parse_args()
    num, num_error = NUM[given.data]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fixed = {"teacher": given.data, "preview_steps": 0}
        config = resolve_config(run, [fixed, given.settings], preset=given.preset)
        trainer = build_trainer(config, run)
        drive(trainer, lambda: False, no_progress)
        line = {
            "data": given.data,
            "name": given.name,
            "preset": given.preset,
            "settings": given.settings,
            **trainer.state.teacher_work(),
            "seconds": round(trainer.seconds, 1),
            **machine(),
        }
        for steps in given.steps:
            line[f"{steps} evaluations"] = pidistill.evaluate(
                run,
                given.data,
                num=num,
                num_error=num_error,
                steps=steps,
                metrics=["fid", "error", "precision-recall"],
                store=Path(folder) / "samples",
            )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
