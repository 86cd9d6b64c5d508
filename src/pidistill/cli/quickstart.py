"""`pidistill quickstart`: from nothing to a one-step student in three minutes on a laptop."""

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import Out, json_option

MEASURES = 12
"""Points of the error curve."""


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Run folder; by default quickstart, quickstart-2, ... in the current folder.",
)
@click.option(
    "--max-train-steps", type=click.IntRange(min=1), default=2500, show_default=True, metavar="N"
)
@click.option(
    "--num",
    type=click.IntRange(min=2),
    default=5000,
    show_default=True,
    metavar="N",
    help="Samples to measure with.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")
@json_option
def quickstart(
    folder: Path | None, max_train_steps: int, num: int, seed: int, as_json: bool
) -> None:
    """Distil the bundled digits teacher into a one-step student and report on it.

    Takes about two minutes on two CPU cores, and needs no data, no download and no GPU. DIR holds
    the run, metrics.json and report.html.
    """
    out = Out(as_json)
    if folder is not None and folder.is_dir() and any(folder.iterdir()):
        raise click.ClickException(f"--out {folder} is not empty; choose another folder")
    began = time.monotonic()
    folder = folder or _free_folder()
    from pidistill.cli.metrics_table import COLUMNS, metrics_rows, print_context
    from pidistill.cli.run import resolve_config, train
    from pidistill.evaluation import evaluate
    from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
    from pidistill.evaluation.student_report import write_report
    from pidistill.evaluation.trajectory import per_sample_rms, rms
    from pidistill.files import write_json
    from pidistill.machine import machine
    from pidistill.model_folder import load_student
    from pidistill.report.numbers import figures
    from pidistill.students.trajectory import TrajectoryStudent
    from pidistill.teachers import load_teacher
    from pidistill.training.assemble import build_trainer
    from pidistill.training.trainer import StepReport

    config = resolve_config(
        folder,
        default_preset="fast",
        fixed={
            "teacher": "digits",
            "seed": seed,
            "max_train_steps": max_train_steps,
        },
        preset=None,
        config=None,
        assignments=(),
        resume=False,
        flags={},
    )
    trainer = build_trainer(config, folder)
    device = trainer.accelerator.device
    learner = trainer.method.student
    assert isinstance(learner, TrajectoryStudent)
    teacher = load_teacher("digits", device)
    target = teacher_samples(teacher, 256, seed=seed + 1).x
    error_curve: dict[int, float] = {}
    every = max(1, max_train_steps // MEASURES)
    out.say(f"1/3  distilling the bundled digits teacher for {max_train_steps} steps into {folder}")

    def measure_error(report: StepReport) -> None:
        if report.step % every == 0 or report.step == max_train_steps:
            x = learner.generate(256, seed=seed + 1).x
            error_curve[report.step] = rms(per_sample_rms(x, target))

    train(trainer, out, "distilling", on_step=measure_error)

    out.say(f"2/3  measuring with {num} samples")
    student = load_student(folder, device=device)
    assert isinstance(student, TrajectoryStudent)
    with tempfile.TemporaryDirectory() as store:  # both are compared with the same solution
        common: dict[str, Any] = {
            "num": num,
            "num_error": num,
            "seed": seed,
            "teacher": teacher,
            "device": device,
            "store": store,
            "progress": out.progress,
        }
        metrics = evaluate(folder, "digits", metrics=["fid", "error", "speed"], **common)
        coarse = evaluate(teacher, "digits", metrics=["fid", "error"], steps=18, **common)
    write_json(folder / "metrics.json", metrics)
    rows = metrics_rows(metrics)
    rows.insert(
        0,
        [
            "teacher, 18 nodes of Heun",
            figures(coarse["nfe"]),
            figures(metrics["teacher_ms_per_sample"] * coarse["nfe"] / metrics["teacher_nfe"]),
            figures(coarse["frechet_distance"]),
            figures(coarse["rms_error"]),
        ],
    )

    out.say("3/3  writing the report")
    gain = metrics["teacher_ms_per_sample"] / metrics["ms_per_sample"]
    write_report(
        folder / "report.html",
        student,
        teacher,
        title="Handwritten digits in one network evaluation",
        subtitle=(
            f"A student distilled from the bundled 8x8 digits teacher by PID in "
            f"{trainer.seconds:.0f} seconds, without data."
        ),
        table=(COLUMNS, rows),
        context=(
            f"The student is {gain:.0f} times faster a sample than the teacher's 40 nodes. "
            f"The error is the RMS distance, in pixels from -1 to 1, to the teacher's sample of "
            f"the same noise. The Frechet distance is taken in the features of a small digits "
            f"classifier over {num} samples; half of the digits against the other half: "
            f"{figures(metrics['reference_split_frechet_distance'])}."
        ),
        error_curve=error_curve,
        provenance={
            "command": f"pidistill quickstart --seed {seed} --max-train-steps {max_train_steps}",
            "recipe": "preset fast",
            **machine(),
        },
        seed=seed,
        steps=TEACHER_STEPS,
    )
    out.table(f"{num} samples, seed {seed}", COLUMNS, rows)
    print_context(out, metrics)
    out.say(f"open {folder / 'report.html'} to look at the samples")
    out.say(
        f"done in {time.monotonic() - began:.0f} s; draw more: "
        f"pidistill sample {folder} -n 100 --out samples.png"
    )
    out.result(metrics)


def _free_folder() -> Path:
    """The first of quickstart, quickstart-2, ... that is not there yet."""
    number, folder = 1, Path("quickstart")
    while folder.exists():
        number += 1
        folder = Path(f"quickstart-{number}")
    return folder
