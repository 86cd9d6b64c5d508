"""`pidistill distill`: a teacher into a one-step student."""

from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import Out, json_option
from pidistill.cli.dry_run import print_estimate
from pidistill.cli.end_table import print_end
from pidistill.cli.run import out_folder, resolve_config, train, training_options
from pidistill.methods import NAMES
from pidistill.presets import preset_names


@click.command(epilog=f"Presets: {', '.join(preset_names())}.")
@click.option(
    "--teacher", default=None, metavar="SPEC", help="digits, glyphs, mixture:NAME, or a path."
)
@click.option("--method", type=click.Choice(NAMES), default=None, help="Default: pid.")
@click.option(
    "--data",
    default=None,
    metavar="DATA",
    help="Images, for consistency and progressive: digits, glyphs, or folder:PATH.",
)
@click.option("--out", "folder", type=click.Path(path_type=Path), metavar="DIR")
@training_options
@json_option
def distill(
    teacher: str | None,
    method: str | None,
    data: str | None,
    folder: Path | None,
    preset: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Distil a teacher into a student that samples in one network evaluation.

    DIR becomes the run folder: config.toml, student.safetensors, averaged weights,
    metrics.jsonl, previews, and state/ for resuming.
    """
    out = Out(as_json)
    flags["teacher"] = teacher
    flags["data"] = data
    flags["method"] = None if method is None else {"name": method}
    settings = resolve_config(
        out_folder(folder, dry_run, resume),
        default_preset="fast",
        fixed={},
        preset=preset,
        config=config,
        assignments=assignments,
        resume=resume,
        flags=flags,
    )
    from pidistill.errors import PidistillError
    from pidistill.training.assemble import build_trainer

    if settings.teacher is None:
        raise PidistillError("no teacher is named; add --teacher SPEC, such as --teacher digits")
    if folder is None or dry_run:
        print_estimate(out, settings)
        return
    trainer = build_trainer(settings, folder)
    train(trainer, out, "distilling")
    print_end(out, trainer, "student")
