"""`pidistill train-teacher`: a diffusion model on a data set."""

from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import Out, json_option
from pidistill.cli.dry_run import print_estimate
from pidistill.cli.end_table import print_end
from pidistill.cli.run import out_folder, resolve_config, train, training_options
from pidistill.presets import preset_names

PRESETS = {"digits": "digits-teacher", "glyphs": "glyphs-teacher"}
"""The preset of a data set that has its own."""


@click.command(epilog=f"Presets: {', '.join(preset_names())}.")
@click.argument("data", metavar="DATA")
@click.option("--out", "folder", type=click.Path(path_type=Path), metavar="DIR")
@training_options
@json_option
def train_teacher(
    data: str,
    folder: Path | None,
    preset: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a diffusion model (the EDM loss) on DATA: digits, glyphs, or folder:PATH of images.

    DIR becomes a run folder that 'native:DIR' names as a teacher.
    """
    out = Out(as_json)
    settings = resolve_config(
        out_folder(folder, dry_run, resume),
        default_preset=PRESETS.get(data, "image-teacher"),
        fixed={"data": data},
        preset=preset,
        config=config,
        assignments=assignments,
        resume=resume,
        flags=flags,
    )
    from pidistill.errors import PidistillError
    from pidistill.training.assemble import build_trainer

    if settings.method.name != "denoising":
        raise PidistillError(
            f"method.name is {settings.method.name!r}; a teacher is trained by 'denoising'"
        )
    if folder is None or dry_run:
        print_estimate(out, settings)
        return
    trainer = build_trainer(settings, folder)
    train(trainer, out, "training")
    print_end(out, trainer, "teacher")
