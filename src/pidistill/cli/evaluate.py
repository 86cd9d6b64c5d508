"""`pidistill evaluate`: measures a student, a teacher, or samples from a file."""

import shutil
from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import (
    Out,
    batch_size_option,
    best_device,
    device_option,
    json_option,
    refine_option,
    steps_option,
    teacher_option,
)


@click.command()
@click.argument("target", metavar="TARGET")
@click.option(
    "--reference",
    default=None,
    metavar="DATA/FILE.npz",
    help="digits, glyphs, a folder of images, an .npz of samples or of mu and sigma, or samples "
    "of a teacher: teacher (the run's own) or teacher:SPEC.",
)
@click.option(
    "-n",
    "--num",
    type=click.IntRange(min=2, max=2**40),
    default=None,
    metavar="N",
    help="Number of samples; default 50000, or all in a file.",
)
@click.option(
    "--num-error",
    type=click.IntRange(min=1, max=2**40),
    default=5000,
    show_default=True,
    metavar="N",
    help="Maximum number of samples compared with the teacher's solution.",
)
@click.option(
    "--metrics",
    default=None,
    metavar="NAME,...",
    help="fid, kid, is, precision-recall, label-agreement, error, trajectory, diversity, "
    "training-images, speed; default all that apply, except kid, is and precision-recall.",
)
@click.option(
    "--features",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (the bundled one for the reference), digits, glyphs, inception, dinov2, the name of "
    "a plug-in, or a folder of train-features.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    metavar="PATH",
    help="Weights for the features inception or dinov2.",
)
@click.option("--allow-download", is_flag=True, help="Download missing weights of features.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0,),
    show_default=True,
    metavar="S",
    help="Repeat to measure several seeds and their spread.",
)
@click.option(
    "--ema",
    "rates",
    multiple=True,
    metavar="RATE",
    help="Averaging rate of the weights, 0 for raw, or all. May be repeated.",
)
@teacher_option
@steps_option
@refine_option
@click.option(
    "--solver", type=click.Choice(["heun", "euler"]), default=None, help="For teachers only."
)
@click.option(
    "--out",
    "file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE.json",
    help="Output file; default metrics.json in the run folder.",
)
@click.option("--keep-samples", is_flag=True, help="Keep the measured samples.")
@batch_size_option
@device_option
@json_option
def evaluate(
    target: str,
    reference: str | None,
    num: int | None,
    num_error: int,
    metrics: str | None,
    features: str,
    weights: Path | None,
    allow_download: bool,
    seeds: tuple[int, ...],
    rates: tuple[str, ...],
    teacher: str | None,
    steps: int | None,
    refine: int,
    solver: str | None,
    file: Path | None,
    keep_samples: bool,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a run folder, a teacher's spec, or an .npz of samples.

    Prints a table and writes metrics.json and pictures. A killed call resumes where it stopped. The
    teacher of a run is the one in its config. Without it or a suitable feature network, the metrics
    that need it are omitted, with a note.
    """
    out = Out(as_json)
    from pidistill.evaluation import evaluate as measure
    from pidistill.processes import join_processes

    file, folder = _outputs(file, target)
    store = None if folder is None or target.endswith(".npz") else folder / "samples"
    if reference is None and metrics is None:
        out.say("no --reference: distances to data are not measured")
    result = measure(
        target,
        reference,
        num=num,
        num_error=num_error,
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
        features=features,
        weights=weights,
        allow_download=allow_download,
        seed=seeds,
        teacher=teacher,
        ema=rates or None,
        steps=steps,
        refine=refine,
        solver=solver,
        batch_size=batch_size,
        device=best_device(device),
        store=store,
        pictures=folder,
        processes=join_processes(),
        progress=out.progress,
        say=out.say,
    )
    if result:  # empty in all but the main process
        _report(out, result, file, folder, None if keep_samples else store)


def _report(
    out: Out, result: dict[str, Any], file: Path | None, folder: Path | None, scratch: Path | None
) -> None:
    """Write and print the metrics, and remove the folder `scratch`."""
    from pidistill.cli.metrics_table import print_metrics
    from pidistill.files import write_json

    if file is not None:
        write_json(file, result)
    print_metrics(out, result)
    if file is not None:
        out.say(f"wrote {file}, and pictures to {folder}")
    out.result(result)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _outputs(file: Path | None, target: str) -> tuple[Path | None, Path | None]:
    """The metrics file and the pictures folder.

    In a run folder, `metrics.json` and `evaluation`; with --out, `FILE.json` and `FILE`.
    """
    from pidistill.errors import PidistillError
    from pidistill.files import require_writable_folder
    from pidistill.model_folder import is_model_folder
    from pidistill.paths import user_path

    if file is None:
        folder = user_path(target)
        if not is_model_folder(folder):
            return None, None
        require_writable_folder(folder)
        return folder / "metrics.json", folder / "evaluation"
    if file.suffix != ".json":
        raise PidistillError(f"--out {file} does not end in .json")
    if file.is_dir():
        raise PidistillError(f"--out {file} is a folder; expected a file")
    require_writable_folder(file.parent)
    return file, file.with_suffix("")
