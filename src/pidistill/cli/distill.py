"""`pidistill distill`: a teacher into a one-step student."""

import difflib
from typing import Any

import click

from pidistill import methods
from pidistill.cli.console import json_option
from pidistill.cli.run import list_of_presets, run_verb, training_options
from pidistill.errors import PidistillError
from pidistill.library import DEFAULT_PRESET, METHOD_PRESET
from pidistill.training.config import RunConfig


def _known_method(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    if name is not None and name not in methods.NAMES:
        near = difflib.get_close_matches(name, methods.NAMES, n=1, cutoff=0.0)[0]
        raise click.BadParameter(
            f"{name!r} is not one of {', '.join(methods.NAMES)}; did you mean {near!r}?"
        )
    return name


@click.command(
    epilog=list_of_presets(
        f"{DEFAULT_PRESET}; with most methods {METHOD_PRESET}", lambda method: method != "denoising"
    )
)
@click.option(
    "--method",
    metavar="NAME",
    callback=_known_method,
    help=f"Method: {', '.join(methods.NAMES)}; default: that of the preset.",
)
@training_options()
@json_option
def distill(method: str | None, **options: Any) -> None:
    """Distil a teacher into a student that samples in one network evaluation.

    DIR becomes the run folder: config.toml, student.safetensors, averaged weights,
    metrics.jsonl, previews, and state/ for resuming.
    """
    named = {} if method is None else {"method": {"name": method}}
    run_verb("student", [named], None, _require_teacher, **options)


def _require_teacher(config: RunConfig) -> None:
    if config.method.name == "denoising":
        raise PidistillError("method.name is 'denoising', which trains teachers; use train-teacher")
    if config.teacher is None:
        raise PidistillError("no teacher is named; add --teacher SPEC, such as --teacher digits")
