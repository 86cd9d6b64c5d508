"""`pidistill train-teacher`: a diffusion model on a data set."""

from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import Out, json_option
from pidistill.cli.run import (
    list_of_presets,
    parse_assignment,
    run_folder,
    train_or_estimate,
    training_options,
)
from pidistill.errors import PidistillError
from pidistill.library import resolve_config

PRESETS = {"digits": "digits-teacher", "glyphs": "glyphs-teacher"}
"""The preset of a data set that has its own."""

DEFAULT_PRESET = "image-teacher"


@click.command(
    epilog=list_of_presets(
        "; ".join([DEFAULT_PRESET, *(f"for {data} {name}" for data, name in PRESETS.items())]),
        lambda method: method == "denoising",
    )
)
@click.argument("data", metavar="DATA")
@training_options(leave_out=("teacher", "data"))
@json_option
def train_teacher(
    data: str,
    folder: Path | None,
    preset: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Train a diffusion model (the EDM loss) on DATA: digits, glyphs, or folder:PATH of images.

    DIR becomes a run folder that 'native:DIR' names as a teacher.
    """
    out = Out(as_json)
    config = resolve_config(
        run_folder(folder, dry_run, resume),
        [*map(parse_assignment, assignments), {**fields, "data": data}],
        preset=preset,
        default_preset=PRESETS.get(data, DEFAULT_PRESET),
        file=file,
        resume=resume,
    )
    if config.method.name != "denoising":
        raise PidistillError(
            f"method.name is {config.method.name!r}; a teacher is trained by 'denoising'"
        )
    train_or_estimate(config, folder, dry_run, out, "teacher")
