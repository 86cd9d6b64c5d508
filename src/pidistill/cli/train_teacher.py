"""`pidistill train-teacher`: a diffusion model on a data set."""

from typing import Any

import click

from pidistill.cli.console import json_option
from pidistill.cli.run import list_of_presets, run_verb, training_options
from pidistill.errors import PidistillError
from pidistill.training.config import RunConfig

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
def train_teacher(data: str, **options: Any) -> None:
    """Train a diffusion model (the EDM loss) on DATA: digits, glyphs, or folder:PATH of images.

    DIR becomes a run folder that 'native:DIR' names as a teacher.
    """
    preset = PRESETS.get(data, DEFAULT_PRESET)
    run_verb("teacher", [], preset, _require_denoising, data=data, **options)


def _require_denoising(config: RunConfig) -> None:
    if config.method.name != "denoising":
        raise PidistillError(
            f"method.name is {config.method.name!r}; a teacher is trained by 'denoising'"
        )
