"""`pidistill train-teacher`: a diffusion model on a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import Out, duration, json_option
from pidistill.cli.run import list_of_presets, parse_assignment, run_verb, training_options
from pidistill.errors import PidistillError
from pidistill.files import require_writable_folder
from pidistill.library import resolve_config
from pidistill.training.config import CONFIG_FILE, RunConfig
from pidistill.training.sizes import (
    ENOUGH_STEPS,
    SIZES,
    duration_of,
    duration_text,
    network_of_size,
)

if TYPE_CHECKING:
    from pidistill.data import Dataset

PRESETS = {"digits": "digits-teacher", "glyphs": "glyphs-teacher"}
"""The preset of a data set that has its own."""

DEFAULT_PRESET = "image-teacher"


DEFAULT_TIME = "30m"


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return value if isinstance(value, float) else duration_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog=list_of_presets(
        "; ".join([DEFAULT_PRESET, *(f"for {data} {name}" for data, name in PRESETS.items())]),
        lambda method: method == "denoising",
    )
)
@click.argument("data", metavar="DATA")
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    help="Size of the network, from about 0.7 to 60 million parameters. Default: the largest that "
    "--time trains well, or xs with --max-train-steps.",
)
@click.option(
    "--time",
    "seconds",
    type=_Duration(),
    metavar="TIME",
    help=f"Train for about this long, such as 90s, 30m or 2h: steps are timed, then their number "
    f"is fixed. Default: {DEFAULT_TIME}, unless the settings say how long.",
)
@training_options(leave_out=("teacher", "data"))
@json_option
def train_teacher(data: str, size: str | None, seconds: float | None, **options: Any) -> None:
    """Train a diffusion model (the EDM loss) on DATA.

    DATA is folder:PATH, npz:FILE, idx:FOLDER or hf:NAME of images, or the bundled digits or
    glyphs.
    DIR becomes a run folder that 'native:DIR' names as a teacher.
    """
    preset = PRESETS.get(data, DEFAULT_PRESET)
    folder, steps = options["folder"], options["max_train_steps"]
    if seconds and steps:
        raise click.UsageError("name either --time or --max-train-steps")
    begun = options["resume"] and folder is not None and (folder / CONFIG_FILE).is_file()
    if begun and (size or seconds):
        raise click.UsageError(
            "--size and --time are for new runs; train a resumed one for longer by "
            "--max-train-steps"
        )
    named = any([options["preset"], options["file"], _sets_network(options["assignments"])])
    below: list[dict[str, Any]] = []
    images = None
    if not begun and (size or seconds or not (named or data in PRESETS)):
        if folder is not None and not options["dry_run"]:
            _require_new(folder, data, preset, options["resume"])
        if steps is None:
            seconds = seconds or duration_of(DEFAULT_TIME)
        from pidistill.data import load_data

        images = load_data(data, Out(options["as_json"]).progress)
        below = [_chosen(images, size, seconds, preset, options)]
    run_verb("teacher", below, preset, _require_denoising, data=data, images=images, **options)


def _require_new(folder: Path, data: str, preset: str, resume: bool) -> None:
    """Raise `PidistillError` unless a run can begin in `folder`, before steps are timed."""
    resolve_config(folder, [{"data": data}], default_preset=preset, resume=resume)
    is_new = not folder.exists()
    require_writable_folder(folder)
    if is_new:
        folder.rmdir()


def _sets_network(assignments: tuple[str, ...]) -> bool:
    return any(text.startswith(("network", "max_train_steps")) for text in assignments)


def _chosen(
    images: "Dataset", size: str | None, seconds: float | None, preset: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Network and number of steps for the data, the machine and the time, as settings."""
    from pidistill.training.estimate import estimate

    out = Out(options["as_json"])
    fields = {key: options[key] for key in RunConfig.model_fields if key in options}
    chosen: dict[str, Any] = {}
    for name in [size] if size else SIZES:
        network = network_of_size(name, images.sample_shape)
        layer = {"network": network, **({} if seconds is None else {"max_train_steps": 1})}
        layers = [
            layer,
            *map(parse_assignment, options["assignments"]),
            {**fields, "data": images.name},
        ]
        config = resolve_config(
            None, layers, preset=options["preset"], default_preset=preset, file=options["file"]
        )
        _require_denoising(config)
        if seconds is None:
            out.say(f"size {name}; choose another with --size")
            return layer
        facts = estimate(config, images)
        steps = max(1, round(seconds / facts["seconds_per_step"]))
        if chosen and steps < ENOUGH_STEPS:
            break
        warmup = min(config.lr_warmup_steps, steps // 10)
        chosen = {"network": network, "max_train_steps": steps, "lr_warmup_steps": warmup}
        text = (
            f"size {name}: {facts['parameters']['student']:,} parameters, "
            f"{facts['seconds_per_step']:.3g} s a step, {steps:,} steps in {duration(seconds)}"
        )
        if steps < ENOUGH_STEPS:
            break
    out.say(f"{text}; choose another with --size and --time")
    if chosen["max_train_steps"] < ENOUGH_STEPS:
        enough = duration_text(seconds / chosen["max_train_steps"] * ENOUGH_STEPS)
        out.say(
            f"warning: {chosen['max_train_steps']:,} steps are few: samples will be poor; about "
            f"{ENOUGH_STEPS:,} train this network, which takes --time {enough} here"
        )
    return chosen


def _require_denoising(config: RunConfig) -> None:
    if config.method.name != "denoising":
        raise PidistillError(
            f"method.name is {config.method.name!r}; a teacher is trained by 'denoising'"
        )
