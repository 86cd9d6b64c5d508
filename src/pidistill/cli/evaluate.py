"""`pidistill evaluate`: a student against its teacher and a reference, or anybody's samples."""

import shutil
from pathlib import Path

import click

from pidistill.cli.console import (
    Out,
    batch_size_option,
    best_device,
    device_option,
    json_option,
    steps_option,
)


@click.command()
@click.argument("target", metavar="TARGET")
@click.option(
    "--reference",
    default=None,
    metavar="DATA/FILE.npz",
    help="digits, glyphs, a folder of images, an .npz of samples or of mu and sigma, or what a "
    "teacher draws: teacher (the run's own) or teacher:SPEC.",
)
@click.option(
    "-n",
    "--num",
    type=click.IntRange(min=2),
    default=None,
    metavar="N",
    help="Samples; by default 50000, or all in a file.",
)
@click.option(
    "--num-error",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    metavar="N",
    help="Samples, at most, that the teacher solves for.",
)
@click.option(
    "--metrics",
    default=None,
    metavar="NAME,...",
    help="fid, kid, is, precision-recall, error, trajectory, diversity, training-images, speed; "
    "by default all that can be had, except kid, is and precision-recall.",
)
@click.option(
    "--features",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (the bundled one of the reference), digits, glyphs, inception, dinov2 or "
    "the name of a plug-in.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    metavar="PATH",
    help="Weights of the features inception or dinov2.",
)
@click.option("--allow-download", is_flag=True, help="Fetch weights of features that are missing.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0,),
    show_default=True,
    metavar="S",
    help="May be repeated, for the least value and the spread.",
)
@click.option(
    "--ema",
    "rates",
    multiple=True,
    metavar="RATE",
    help="Averaging rate of the weights; 0: raw. May be repeated; all: every average.",
)
@steps_option
@click.option(
    "--solver", type=click.Choice(["heun", "euler"]), default=None, help="For a teacher only."
)
@click.option(
    "--out",
    "file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE.json",
    help="Where metrics go; by default metrics.json in a run folder.",
)
@click.option("--keep-samples", is_flag=True, help="Keep the samples that were measured.")
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
    steps: int | None,
    solver: str | None,
    file: Path | None,
    keep_samples: bool,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a run folder, a teacher's spec, or an .npz of anybody's samples.

    Prints a table, writes metrics.json and pictures; a call that was killed goes on where it was.
    The teacher of a run is the one that its config names. Where it or a suitable feature network
    is missing, the metrics that need it are left out, with a note on why.
    """
    out = Out(as_json)
    from pidistill.cli.metrics_table import print_metrics
    from pidistill.evaluation import evaluate as measure
    from pidistill.files import write_json
    from pidistill.processes import join_processes

    file, folder = _outputs(file, target)
    store = None if folder is None or target.endswith(".npz") else folder / "samples"
    if reference is None and metrics is None:
        out.say("without --reference: no distances to data")
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
        ema=rates or None,
        steps=steps,
        solver=solver,
        batch_size=batch_size,
        device=best_device(device),
        store=store,
        pictures=folder,
        processes=join_processes(),
        progress=out.progress,
        say=out.say,
    )
    if not result:  # the main process has it
        return
    if file is not None:
        write_json(file, result)
    print_metrics(out, result)
    if file is not None:
        out.say(f"{file}, and pictures in {folder}")
    if store is not None and not keep_samples:
        shutil.rmtree(store, ignore_errors=True)
    out.result(result)


def _outputs(file: Path | None, target: str) -> tuple[Path | None, Path | None]:
    """The file of the metrics and the folder of the pictures.

    They are `metrics.json` and `evaluation` in a run folder, or `FILE.json` and `FILE` beside it.
    """
    from pidistill.errors import PidistillError
    from pidistill.model_folder import is_model_folder
    from pidistill.paths import user_path

    if file is None:
        folder = user_path(target)
        if not is_model_folder(folder):
            return None, None
        return folder / "metrics.json", folder / "evaluation"
    if file.suffix != ".json":
        raise PidistillError(f"--out {file} does not end in .json")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file, file.with_suffix("")
