"""`pidistill quickstart`: from nothing to a one-step student in three minutes on a laptop."""

import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import NOT_NEGATIVE, PATH, POSITIVE, Out, command_line, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from pidistill.training.log import StepReport
    from pidistill.training.trainer import Trainer

POINTS = 12
"""Points of the error curve."""
NUM_CURVE = 256
"""Samples that a point is measured with."""
COARSE_NODES = 18
"""Nodes of a teacher's solution that is cheaper than the one the student is measured against."""
MORE_EVALUATIONS = 4
"""Evaluations of the student that are measured besides one."""
OWN_SETTINGS = {
    "batch_size": 128,
    "learning_rate": 1e-3,
    "ema_rates": [0.995],
    "method": {
        "weight": 0.01,
        "share_from_noise": 0.8,
        "student_learning_rate": 8e-4,
        "auxiliary_learning_rate": 3e-4,
        "auxiliary_warmup": 100,
    },
}
"""What differs from the preset, chosen for the digits by measurement (docs/results.md)."""


@click.command()
@click.option(
    "--out",
    "folder",
    type=PATH,
    metavar="DIR",
    help="Run folder; by default quickstart, quickstart-2, ... in the current folder.",
)
@click.option(
    "--max-train-steps", type=POSITIVE, default=2500, metavar="N", help="Optimizer steps."
)
@click.option(
    "--num", type=click.IntRange(min=2), default=5000, metavar="N", help="Samples to measure with."
)
@click.option("--seed", type=NOT_NEGATIVE, default=0, metavar="S", help="Seed of the run.")
@json_option
def quickstart(
    folder: Path | None, max_train_steps: int, num: int, seed: int, as_json: bool
) -> None:
    """Distil the bundled digits teacher into a one-step student and report on it.

    Takes less than three minutes on two CPU cores, and needs no data, no download and no GPU. DIR
    holds the run, metrics.json and report.html. Settings: the preset matched, tuned for the digits.
    """
    out = Out(as_json)
    began = time.monotonic()
    from pidistill.cli.run import train
    from pidistill.library import resolve_config
    from pidistill.training.assemble import build_trainer

    folder = folder or _free_folder()
    fixed = {
        "teacher": "digits",
        "seed": seed,
        "max_train_steps": max_train_steps,
        **OWN_SETTINGS,
    }
    trainer = build_trainer(resolve_config(folder, [fixed]), folder)
    errors: dict[int, float] = {}
    out.say(f"1/3  distilling the bundled digits teacher into {folder}")
    train(trainer, out, on_step=_error_curve(trainer, errors))
    out.say(f"2/3  measuring with {num:,} samples")
    metrics, others = _measure(out, folder, num, seed)
    out.say("3/3  writing the report")
    _report(out, trainer, metrics, others, errors)
    out.say(f"open {folder / 'report.html'} to look at the samples")
    out.say(
        f"done in {time.monotonic() - began:.0f} s; draw more: "
        f"pidistill sample {folder} -n 100 --out samples.png"
    )
    out.result(metrics)


def _error_curve(trainer: "Trainer", errors: dict[int, float]) -> "Callable[[StepReport], None]":
    """What is to be called after every step to put `POINTS` RMS errors into `errors`, by step.

    The noise is of another seed than that of the metrics.
    """
    import torch

    from pidistill import Student, initial_noise, load_teacher, solve

    student, steps = trainer.method.student, trainer.config.max_train_steps
    assert isinstance(student, Student)
    seed = trainer.config.seed + 1
    teacher = load_teacher("digits", trainer.accelerator.device)
    z = initial_noise(teacher, NUM_CURVE, seed=seed)
    label = torch.arange(NUM_CURVE, device=z.device) % teacher.num_classes
    target = solve(teacher, z, steps=40, label=label).x

    def measure(report: "StepReport") -> None:
        if report.step % max(1, steps // POINTS) == 0 or report.step == steps:
            x = student.generate(NUM_CURVE, seed=seed, label=label).x
            errors[report.step] = (x - target).square().mean().sqrt().item()

    return measure


def _measure(
    out: Out, folder: Path, num: int, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The metrics of the student, written to its folder, and those of what it is compared with."""
    from pidistill.evaluation import evaluate
    from pidistill.files import write_json

    with tempfile.TemporaryDirectory() as store:  # all are compared with the same solution
        common: dict[str, Any] = {
            "num": num,
            "num_error": num,
            "seed": seed,
            "teacher": "digits",
            "store": store,
            "progress": out.progress,
        }
        both = ["fid", "error"]
        metrics = evaluate(folder, "digits", metrics=[*both, "speed"], **common)
        coarse = evaluate("digits", "digits", metrics=both, steps=COARSE_NODES, **common)
        more = evaluate(folder, "digits", metrics=both, steps=MORE_EVALUATIONS, **common)
    write_json(folder / "metrics.json", metrics)
    per_evaluation = metrics["teacher_ms_per_sample"] / metrics["teacher_nfe"]
    return metrics, {
        f"teacher, {COARSE_NODES} nodes of Heun": {
            **coarse,
            "ms_per_sample": per_evaluation * coarse["nfe"],
        },
        f"student, {MORE_EVALUATIONS} evaluations": {
            **more,
            "ms_per_sample": metrics["ms_per_sample"] * MORE_EVALUATIONS,
        },
    }


def _report(
    out: Out,
    trainer: "Trainer",
    metrics: dict[str, Any],
    others: dict[str, dict[str, Any]],
    errors: dict[int, float],
) -> None:
    """Write report.html and print its table."""
    from pidistill.cli.metrics_table import COLUMNS, KEYS, metrics_rows, print_context
    from pidistill.evaluation.sampling import TEACHER_STEPS
    from pidistill.evaluation.student_report import write_report
    from pidistill.machine import machine
    from pidistill.model_folder import load_student
    from pidistill.report.numbers import figures
    from pidistill.students.path import PathStudent
    from pidistill.teachers import load_teacher

    folder, device, num = trainer.folder, trainer.accelerator.device, metrics["num_samples"]
    rows = [
        [name, *(figures(found[KEYS[column]]) for column in COLUMNS[1:])]
        for name, found in others.items()
    ] + metrics_rows(metrics)
    gain = metrics["teacher_ms_per_sample"] / metrics["ms_per_sample"]
    student = load_student(folder, device=device)
    assert isinstance(student, PathStudent)
    write_report(
        folder / "report.html",
        student,
        load_teacher("digits", device),
        title="Handwritten digits in one network evaluation",
        subtitle=(
            "A student distilled from the bundled 8x8 digits teacher in "
            f"{trainer.seconds:.0f} seconds, without data: PID of the flow map, then a correction "
            "of the distribution."
        ),
        table=(COLUMNS, rows),
        context=(
            f"The student is {gain:.0f} times faster per sample than the teacher's 40 nodes. "
            "The error is the RMS distance, in pixels from -1 to 1, to the teacher's sample of "
            "the same noise. The Frechet distance is taken in the features of a small digits "
            f"classifier over {num} samples; half of the digits against the other half: "
            f"{figures(metrics['reference_split_frechet_distance'])}."
        ),
        error_curve=errors,
        provenance={"command": command_line(), "recipe": "preset matched", **machine()},
        seed=trainer.config.seed,
        steps=TEACHER_STEPS,
    )
    out.table(f"{num} samples, seed {trainer.config.seed}", COLUMNS, rows)
    print_context(out, metrics)


def _free_folder() -> Path:
    """The first of quickstart, quickstart-2, ... that is not there yet."""
    more = (f"quickstart-{number}" for number in itertools.count(2))
    names = itertools.chain(["quickstart"], more)
    return next(path for path in map(Path, names) if not path.exists())
