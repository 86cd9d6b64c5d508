"""What the verbs that train share: their options, made from the run config, and the training."""

import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import Out
from pidistill.cli.dry_run import print_estimate
from pidistill.cli.standing import print_end, print_stop
from pidistill.errors import PidistillError
from pidistill.library import drive, stoppable
from pidistill.presets import preset_names, preset_summary, read_preset
from pidistill.settings import nested, parse_toml_value
from pidistill.training.config import RunConfig

if TYPE_CHECKING:
    from pidistill.training.trainer import StepReport, Trainer

TABLES = ("network", "method")
"""Fields of the run config that are tables: `--set` reaches into them."""

BEFORE = (
    click.option("--out", "folder", type=click.Path(path_type=Path), metavar="DIR"),
    click.option("--preset", default=None, metavar="NAME", help="Settings to start from."),
    click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        default=None,
        metavar="FILE",
        help="TOML file of settings; it overrides the preset, and flags override it.",
    ),
)
AFTER = (
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting, such as method.residual=velocity; may be repeated.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run in --out."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Measure a few steps, estimate the run, and write nothing; --out may be left out.",
    ),
)


def training_options(leave_out: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Add the options of a verb that trains: one for each field of the run config, and `--set`.

    Args:
        leave_out: Fields that the verb decides itself.
    """
    names = [name for name in RunConfig.model_fields if name not in (*TABLES, *leave_out)]
    options = [*BEFORE, *map(_option, names), *AFTER]

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _option(name: str) -> Callable[[Any], Any]:
    """The option that sets a field of the run config."""
    field = RunConfig.model_fields[name]
    kind: Any = field.annotation
    if type(None) in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    flag, text = f"--{name.replace('_', '-')}", " ".join(str(field.description).split())
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    origin = typing.get_origin(kind)
    if origin is list:
        return click.option(flag, type=parse_toml_value, metavar="LIST", help=text)
    choice = click.Choice(typing.get_args(kind)) if origin is typing.Literal else kind
    return click.option(flag, type=choice, default=None, help=text)


def list_of_presets(default: str, method: Callable[[str], bool]) -> str:
    """The help on presets: those whose method's name satisfies `method`, with a line each."""
    names = [name for name in preset_names() if method(read_preset(name)["method"]["name"])]
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {preset_summary(name)}" for name in names]
    return "\n".join(["\b", f"Presets (default: {default}):", *lines])


def run_folder(folder: Path | None, dry_run: bool, resume: bool) -> Path | None:
    """The folder that a run's config depends on; None for a dry run that resumes nothing.

    Raises `click.UsageError` if `--out` is missing.
    """
    if folder is None and (resume or not dry_run):
        raise click.UsageError("Missing option '--out': name the folder of the run")
    return folder if resume or not dry_run else None


def parse_assignment(text: str) -> dict[str, Any]:
    """Parse `method.step=0.2` into nested tables; the value is TOML, or else a string.

    Raises `PidistillError` when there is no key or no value.
    """
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise PidistillError(f"--set {text!r} is not KEY=VALUE, such as method.residual=velocity")
    return nested(key, parse_toml_value(value))


def train_or_estimate(
    config: RunConfig, folder: Path | None, dry_run: bool, out: Out, what: str
) -> None:
    """Train `what`, the student or the teacher; or print what that would take."""
    from pidistill.training.assemble import build_trainer

    if folder is None or dry_run:
        print_estimate(out, config)
        return
    train(build_trainer(config, folder), out)
    print_end(out, folder, what)


def train(
    trainer: "Trainer",
    out: Out,
    title: str = "training",
    on_step: "Callable[[StepReport], None] | None" = None,
) -> None:
    """Run a trainer under a progress bar, calling `on_step` after every step.

    Raises `KeyboardInterrupt` when a signal stopped it before the end; the state is saved.
    """
    with stoppable(out.stderr.print) as should_stop:
        drive(trainer, should_stop, out.progress, title=title, on_step=on_step)
        # Or another process was asked to stop.
        interrupted = should_stop() or trainer.step < trainer.config.max_train_steps
    if interrupted:
        print_stop(out, trainer.folder, trainer.step)
        raise KeyboardInterrupt
