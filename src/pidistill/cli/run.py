"""What the verbs that train share: options, configs and the loop with its progress bar."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import Out, stoppable
from pidistill.cli.end_table import print_stop
from pidistill.processes import was_restarted

if TYPE_CHECKING:
    from pidistill.training.config import RunConfig
    from pidistill.training.trainer import StepReport, Trainer

FLAGS = (
    click.option("--preset", default=None, metavar="NAME", help="Settings to start from."),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=None,
        metavar="FILE",
        help="TOML file of settings; it overrides the preset.",
    ),
    click.option("--max-train-steps", type=int, default=None, metavar="N"),
    click.option("--batch-size", type=int, default=None, metavar="B", help="Samples a step."),
    click.option("--gradient-accumulation-steps", type=int, default=None, metavar="N"),
    click.option("--learning-rate", type=float, default=None, metavar="LR"),
    click.option("--seed", type=int, default=None, metavar="S"),
    click.option("--mixed-precision", type=click.Choice(["no", "bf16", "fp16"]), default=None),
    click.option("--checkpointing-steps", type=int, default=None, metavar="N"),
    click.option(
        "--torch-compile",
        is_flag=True,
        default=None,
        help="Compile the networks: faster, after minutes of compiling.",
    ),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting, such as method.residual=velocity; may be repeated.",
    ),
    click.option(
        "--report-to",
        default=None,
        metavar="NAME",
        help="Trackers to log to: tensorboard, wandb, ..., several with commas between, or all.",
    ),
    click.option("--resume", is_flag=True, help="Go on where the run in --out was cut."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Measure a few steps, estimate the run, and write nothing; --out may be left out.",
    ),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every training verb takes."""
    for option in reversed(FLAGS):
        command = option(command)
    return command


def out_folder(folder: Path | None, dry_run: bool, resume: bool) -> Path | None:
    """The run folder that decides the config; None for a dry run that goes on with no run.

    Raises `click.UsageError` when there has to be one.
    """
    if folder is None and (resume or not dry_run):
        raise click.UsageError("Missing option '--out': name the folder of the run")
    return folder if resume or not dry_run else None


def resolve_config(
    run_folder: Path | None,
    *,
    default_preset: str,
    fixed: dict[str, Any],
    preset: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
    flags: dict[str, Any],
) -> "RunConfig":
    """The config of a run from its layers: preset, file, `--set`, flags.

    Args:
        run_folder: The run folder; None where nothing will be written.
        default_preset: The preset when none is named.
        fixed: What the verb itself decides.
        preset: `--preset`.
        config: `--config`.
        assignments: Every `--set`.
        resume: `--resume`: the config of the folder, where there is one, comes below all flags, and
            they must not contradict it. Processes that were restarted go on without being told.
        flags: The other flags; None means not given.

    Raises:
        PidistillError: A layer is wrong, or the folder holds a run and `resume` is not set.
    """
    from pidistill.errors import PidistillError
    from pidistill.files import LOCK_FILE
    from pidistill.settings import read_toml
    from pidistill.training.config import parse_config, read_preset, require_same_run
    from pidistill.training.heartbeat import HEARTBEAT_FILE

    given = {key: value for key, value in flags.items() if value is not None}
    named = {key: given[key] for key in ("method",) if key in given}  # `--set` refers to it
    upper = [named, *(parse_assignment(text) for text in assignments), given, fixed]
    below = [read_preset(preset or default_preset)]
    below += [read_toml(config)] if config is not None else []
    if run_folder is None:
        return parse_config([*below, *upper], origin=str(config or "settings"))
    resume = resume or was_restarted()
    saved_file = run_folder / "config.toml"
    files = run_folder.iterdir() if run_folder.is_dir() else ()
    if not resume and any(file.name not in (LOCK_FILE, HEARTBEAT_FILE) for file in files):
        raise PidistillError(
            f"{run_folder} is not empty; add --resume to go on with the run in it, "
            "or choose another --out"
        )
    if resume and saved_file.is_file():
        saved = read_toml(saved_file)
        if preset is None and config is None:
            below = [saved]
        resolved = parse_config([*below, *upper], origin=str(config or saved_file))
        require_same_run(parse_config([saved], origin=str(saved_file)), resolved, run_folder)
        return resolved
    return parse_config([*below, *upper], origin=str(config or "settings"))


def parse_assignment(text: str) -> dict[str, Any]:
    """Parse `method.step=0.2` into nested tables; the value is TOML, or else a string.

    Raises `PidistillError` when there is no key or no value.
    """
    from pidistill.errors import PidistillError
    from pidistill.settings import nested, parse_toml_value

    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise PidistillError(f"--set {text!r} is not KEY=VALUE, such as method.residual=velocity")
    return nested(key, parse_toml_value(value))


def prepare(trainer: "Trainer", out: Out, should_stop: Callable[[], bool]) -> None:
    """Do what comes before the first step under a progress bar of its own, if there is any.

    Raises `KeyboardInterrupt` when it was stopped; what is done stays.
    """
    with contextlib.ExitStack() as stack:
        advance, seen = None, 0
        for progress in trainer.prepare():
            if advance is None:
                bar = out.progress(progress.title, progress.total, progress.unit)
                advance = stack.enter_context(bar)
            advance(progress.done - seen)
            seen = progress.done
            if should_stop():
                raise KeyboardInterrupt


def train(
    trainer: "Trainer",
    out: Out,
    title: str,
    on_step: "Callable[[StepReport], None]" = lambda report: None,
) -> None:
    """Run a trainer under a progress bar, calling `on_step` after every step; Ctrl-C saves.

    Raises `KeyboardInterrupt` when it was stopped before the end.
    """
    total = trainer.config.max_train_steps
    with stoppable(out) as should_stop:
        prepare(trainer, out, should_stop)
        with out.progress(title, total * trainer.config.batch_size, "images") as advance:
            seen = 0
            for report in trainer.run(should_stop):
                advance(report.images - seen, f"step {report.step} loss {report.loss:.4g}")
                seen = report.images
                on_step(report)
        interrupted = should_stop() or trainer.step < total  # or another process was asked to
    if interrupted:
        print_stop(out, trainer)
        raise KeyboardInterrupt
