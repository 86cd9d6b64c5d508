"""`pidistill evaluate`: a student against its teacher and a reference, or anybody's samples."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import (
    Out,
    batch_size_option,
    best_device,
    device_option,
    json_option,
    steps_option,
)

if TYPE_CHECKING:
    from pidistill.cli.targets import Target
    from pidistill.evaluation.collect import Summary
    from pidistill.evaluation.features import FeatureNetwork
    from pidistill.evaluation.protocol import Terms
    from pidistill.evaluation.reference import ReferenceData
    from pidistill.evaluation.subject import Subject


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
    "by default what can be had, but for kid, is and precision-recall.",
)
@click.option(
    "--features",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (the bundled one of the reference), digits, glyphs, inception or dinov2.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    default=None,
    metavar="PATH",
    help="Weights of the features.",
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
    help="May be repeated; least value and spread are then told.",
)
@click.option(
    "--ema",
    "rates",
    multiple=True,
    metavar="RATE",
    help="Averaging rate of the weights; 0: raw. May be repeated; all: every average.",
)
@click.option(
    "--labels",
    type=click.Choice(["even", "reference"]),
    default="even",
    show_default=True,
    help="Labels of samples: evenly, or in the reference's proportions.",
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
    help="Where metrics go; by default metrics.json in a run folder, else nowhere.",
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
    labels: str,
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
    is missing, the metrics that need it are left out, with a word on why.
    """
    out = Out(as_json)
    from pidistill.cli.metrics_table import print_metrics
    from pidistill.cli.targets import (
        averages,
        open_subject,
        open_target,
        weights_file,
    )
    from pidistill.evaluation.measures import choose_measures, what_is_there
    from pidistill.evaluation.metrics import METRICS
    from pidistill.evaluation.pictures import write_pictures
    from pidistill.evaluation.protocol import Terms
    from pidistill.evaluation.sweep import all_samples, sweep
    from pidistill.files import write_json
    from pidistill.processes import join_processes

    processes = join_processes()
    opened = open_target(target, best_device(device), out.say)
    emas = averages(opened, rates)
    compared = (
        None if reference is None else _open_reference(out, reference, opened, num_error, seeds)
    )

    def subject_of(ema: float | None) -> "Subject":
        return open_subject(
            opened,
            ema,
            steps=steps,
            solver=solver,
            labels=labels,
            reference=compared,
            batch_size=batch_size,
        )

    first = subject_of(emas[0])
    if compared is not None and compared.images is not None:
        require_shape(compared.name, compared.images.shape[1:], first.sample_shape)
    if compared is None and metrics is None:
        out.say("without --reference: no distances to data")
    network = _network(
        out, features, first.sample_shape, reference, weights, allow_download, opened.place
    )
    names = choose_measures(
        None if metrics is None else tuple(name.strip() for name in metrics.split(",")),
        what_is_there(first, network, compared),
    )
    of_features = tuple(name for name in names if name in METRICS)
    file, folder = _outputs(file, opened)
    terms = Terms(
        num=_num(num, opened),
        error_num=num_error,
        names=of_features,
        network=network if of_features else None,
        processes=processes,
        store=None if folder is None or opened.samples is not None else folder / "samples",
    )
    _say_what_is_there(out, first, terms, seeds)
    of_reference = {}
    if of_features and processes.is_main:
        of_reference = _collect(out, compared, network, of_features)
    total = all_samples(terms, names, len(emas) * len(seeds))
    with out.progress("sampling", total, "samples") as advance:
        swept = sweep(
            (
                (weights_file(opened, ema), first if index == 0 else subject_of(ema))
                for index, ema in enumerate(emas)
            ),
            dataclasses.replace(terms, on_batch=advance),
            seeds,
            names,
            reference=of_reference,
            images=None if compared is None else compared.images,
            batch_size=batch_size,
        )
    if swept is None:  # the main process says what was measured
        return
    result = {
        **swept.metrics,
        **_what_is_measured(opened, first, emas[0], compared, terms),
    }
    if file is not None and folder is not None:
        write_json(file, result)
        write_pictures(folder, swept.first, result)
    print_metrics(out, result)
    if file is not None:
        out.say(f"{file}, and pictures in {folder}")
    if not keep_samples:
        for stored in swept.stored:
            stored.remove()
    out.result(result)


def _open_reference(
    out: Out, spec: str, target: "Target", num: int, seeds: Sequence[int]
) -> "ReferenceData":
    """The reference that `spec` names, drawn under a progress bar where a teacher draws it."""
    from pidistill.cli.targets import draw_reference
    from pidistill.evaluation.reference import read_reference

    if spec.partition(":")[0] != "teacher":
        return read_reference(spec)
    with out.progress("drawing the reference", num, "samples") as advance:
        return draw_reference(spec, target, num, max(seeds) + 1, advance)


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `PidistillError` when reference samples are not of the shape of those measured."""
    from pidistill.errors import PidistillError

    if tuple(shape) != tuple(expected):
        raise PidistillError(
            f"--reference {name} holds samples of shape {tuple(shape)}; what is measured has "
            f"{tuple(expected)}"
        )


def _network(
    out: Out,
    name: str,
    sample_shape: tuple[int, ...],
    reference: str | None,
    weights: Path | None,
    allow_download: bool,
    place: str,
) -> "FeatureNetwork | None":
    """The feature network of a name; by default the bundled one that suits, or None and a word."""
    from pidistill.errors import PidistillError
    from pidistill.evaluation.features import features_for, features_named
    from pidistill.images import is_image

    if weights is not None and name == "auto":
        raise PidistillError(f"--weights {weights} needs --features, such as inception")
    if name != "auto":
        found = features_named(name, sample_shape, weights=weights, allow_download=allow_download)
        return found.to(place)
    bundled = features_for(sample_shape, reference)
    if bundled is None:
        other = "; choose --features inception or dinov2" if is_image(sample_shape) else ""
        out.say(
            f"no bundled feature network suits samples of shape {sample_shape} compared with "
            f"{reference}{other}"
        )
        return None
    return bundled.to(place)


def _num(num: int | None, target: "Target") -> int:
    """How many samples to measure.

    Raises `PidistillError` when a file holds fewer than were asked for.
    """
    from pidistill.errors import PidistillError
    from pidistill.evaluation.protocol import NUM

    if target.samples is None:
        return NUM if num is None else num
    there = len(target.samples)
    if num is not None and num > there:
        raise PidistillError(f"--num {num}, but {target.name} holds {there} samples")
    return there if num is None else num


def _outputs(file: Path | None, target: "Target") -> tuple[Path | None, Path | None]:
    """The file of the metrics and the folder of the pictures.

    They are `metrics.json` and `evaluation` in a run folder, or `FILE.json` and `FILE` beside it.

    Raises `PidistillError` when the file is none of JSON.
    """
    from pidistill.errors import PidistillError

    if file is None:
        folder = target.folder
        return (None, None) if folder is None else (folder / "metrics.json", folder / "evaluation")
    if file.suffix != ".json":
        raise PidistillError(f"--out {file} does not end in .json")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file, file.with_suffix("")


def _say_what_is_there(
    out: Out, subject: "Subject", terms: "Terms", seeds: tuple[int, ...]
) -> None:
    """Say how far a call that was killed had come."""
    from pidistill.evaluation.protocol import stored_samples
    from pidistill.evaluation.sampling import BLOCK

    folders = [folder for seed in seeds for folder in stored_samples(subject, terms, seed)]
    there = sum(folder.count() for folder in folders)
    if there:
        out.say(f"going on: {there} blocks of {BLOCK} samples were drawn before")


def _collect(
    out: Out,
    reference: "ReferenceData | None",
    network: "FeatureNetwork | None",
    names: tuple[str, ...],
) -> "Summary":
    """What metrics of features need of the reference, from the cache or in one pass over it."""
    from pidistill.evaluation.metrics import needs_of_reference
    from pidistill.evaluation.reference import collect_reference

    if reference is None or network is None:
        return {}
    needs = set(needs_of_reference(names))
    if "statistics" in needs:
        needs |= {"split_half"} & reference.can_be_collected
    total = 0 if reference.images is None else len(reference.images)
    with out.progress("reference", total, "images") as advance:
        return collect_reference(reference, network, sorted(needs), on_batch=advance)


def _what_is_measured(
    target: "Target",
    subject: "Subject",
    ema: float | None,
    reference: "ReferenceData | None",
    terms: "Terms",
) -> dict[str, Any]:
    """What the metrics are metrics of: weights, training step, reference, features."""
    from pidistill.training.run_folder import what_is_measured

    facts: dict[str, Any] = {} if subject.student is not None else {"target": target.name}
    if target.folder is not None:
        facts.update(what_is_measured(target.folder, ema))
    if reference is not None:
        facts["reference"] = reference.name
    if terms.network is not None:
        facts["features"] = terms.network.identity
    return facts
