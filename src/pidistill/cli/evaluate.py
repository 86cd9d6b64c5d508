"""`pidistill evaluate`: a student against its teacher and a reference."""

from pathlib import Path

import click

from pidistill.cli.console import (
    Out,
    batch_size_option,
    best_device,
    device_option,
    ema_option,
    json_option,
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--reference",
    required=True,
    metavar="DATA/FILE.npz",
    help="digits, folder:PATH, or an .npz file with an array 'samples'.",
)
@click.option(
    "--num", type=click.IntRange(min=2), default=5000, show_default=True, help="Samples to draw."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@batch_size_option
@ema_option
@device_option
@json_option
def evaluate(
    folder: Path,
    reference: str,
    num: int,
    seed: int,
    batch_size: int,
    ema: float | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure the student in DIR; prints a table and writes metrics.json into DIR.

    The teacher is the one that the run's config names. Where it or a suitable feature network is
    missing, the metrics that need it are left out, with a word on why.
    """
    out = Out(as_json)
    from pidistill.cli.metrics_table import print_metrics
    from pidistill.data import load_data
    from pidistill.evaluation import evaluate as measures
    from pidistill.sample_files import read_samples
    from pidistill.storage import write_json
    from pidistill.student import load_student
    from pidistill.training.run_folder import teacher_of_run, what_is_measured

    place = best_device(device)
    student = load_student(folder, ema, place)
    x = read_samples(Path(reference)) if reference.endswith(".npz") else load_data(reference).images
    require_shape(reference, x.shape[1:], student.sample_shape)
    features = measures.reference_statistics(x)
    if features is None:
        out.say(f"no feature network suits samples of shape {student.sample_shape}: no distances")
    teacher = teacher_of_run(folder, out.say)
    if teacher is not None:
        teacher.to(place)
    with out.progress("sampling", num * (1 + (teacher is not None)), "samples") as advance:
        metrics = measures.evaluate(
            student,
            teacher=teacher,
            reference=features,
            num=num,
            seed=seed,
            steps=student.num_steps,
            batch_size=batch_size,
            on_batch=advance,
        )
    metrics.update(what_is_measured(folder, ema, reference))
    write_json(folder / "metrics.json", metrics)
    print_metrics(out, metrics)
    out.result(metrics)


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `PidistillError` when reference samples are not of the student's shape."""
    from pidistill.errors import PidistillError

    if tuple(shape) != tuple(expected):
        raise PidistillError(
            f"--reference {name} holds samples of shape {tuple(shape)}; the student draws "
            f"{tuple(expected)}"
        )
