"""What the verbs that train share: options made from the run config, training, and a dry run."""

import datetime
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import PATH, Out, counted, duration
from pidistill.cli.inspect import standing
from pidistill.errors import PidistillError
from pidistill.library import drive, resolve_config, stoppable
from pidistill.methods.settings import OptimizerSettings
from pidistill.presets import preset_names, preset_summary, read_preset
from pidistill.processes import is_main_process
from pidistill.report.numbers import figures
from pidistill.settings import nested, parse_toml_value
from pidistill.training.config import RunConfig

if TYPE_CHECKING:
    from pidistill.data import Dataset
    from pidistill.training.log import StepReport
    from pidistill.training.trainer import Trainer

TABLES = ("network", "method")
"""Fields of the run config that are tables: `--set` reaches into them."""

BEFORE = (
    click.option("--out", "folder", type=PATH, metavar="DIR", help="Run folder."),
    click.option("--preset", metavar="NAME", help="Settings to start from."),
    click.option(
        "--config",
        "file",
        type=PATH,
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
        help="Measure a few steps, estimate the run, and write nothing; --out is optional.",
    ),
)

COLUMNS = {
    "steps": "step",
    "images": "images",
    "seconds": "seconds",
    "images/s": "images_per_second",
    "teacher evaluations": "teacher_evals",
    "loss": "loss",
}
"""Which fact each column of the table at the end of a run shows."""


def training_options(leave_out: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """The options of a verb that trains: one for each field of the run config, and `--set`.

    The fields in `leave_out` are decided by the verb itself.
    """
    own_first = sorted(
        RunConfig.model_fields, key=lambda name: name in OptimizerSettings.model_fields
    )
    names = [name for name in own_first if name not in (*TABLES, *leave_out)]
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
    return click.option(flag, type=choice, help=text)


def list_of_presets(default: str, method: Callable[[str], bool]) -> str:
    """The help on presets: those whose method's name satisfies `method`, with a line each."""
    names = [name for name in preset_names() if method(read_preset(name)["method"]["name"])]
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {preset_summary(name)}" for name in names]
    return "\n".join(["\b", f"Presets (default: {default}):", *lines])


def run_verb(
    what: str,
    below: list[dict[str, Any]],
    default_preset: str | None,
    require: Callable[[RunConfig], None],
    *,
    folder: Path | None,
    preset: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    images: "Dataset | None" = None,
    **fields: Any,
) -> None:
    """Train `what`, the student or the teacher, as the options say; or print what that takes.

    Settings in the tables `below` are above the preset and the file, and below `--set` and
    `fields`. `require` raises `PidistillError` if the config is not for this verb. `images` are the
    config's, if they are loaded already.
    """
    out = Out(as_json)
    if folder is None and (resume or not dry_run):
        raise click.UsageError("Missing option '--out': name the folder of the run")
    config = resolve_config(
        folder if resume or not dry_run else None,
        [*below, *map(parse_assignment, assignments), fields],
        preset=preset,
        default_preset=default_preset,
        file=file,
        resume=resume,
    )
    require(config)
    from pidistill.data import load_data
    from pidistill.training.assemble import build_trainer

    if images is None and config.data is not None:
        images = load_data(config.data, out.progress)
    if dry_run or folder is None:
        _print_estimate(out, config, images, what)
        return
    train(build_trainer(config, folder, data=images), out)
    if is_main_process():
        _print_end(out, folder, what)


def parse_assignment(text: str) -> dict[str, Any]:
    """`method.step=0.2` as nested tables; the value is TOML, or else a string."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise PidistillError(f"--set {text!r} is not KEY=VALUE, such as method.residual=velocity")
    return nested(key, parse_toml_value(value))


def train(
    trainer: "Trainer",
    out: Out,
    title: str = "training",
    on_step: "Callable[[StepReport], None] | None" = None,
    time_limit: float | None = None,
) -> None:
    """Run a trainer under a progress bar; arguments as in `drive`.

    Raises `KeyboardInterrupt` when a signal stopped it before the end; the state is saved.
    """
    with stoppable(out.stderr.print) as should_stop:
        drive(
            trainer,
            should_stop,
            out.progress,
            title=title,
            on_step=on_step,
            time_limit=time_limit,
        )
        # Or another process was asked to stop.
        interrupted = should_stop() or trainer.step < trainer.config.max_train_steps
    if not interrupted:
        return
    if is_main_process():
        place = f"step {trainer.step} of {trainer.config.max_train_steps}"
        again = standing(trainer.folder)["next"] if time_limit is None else "the same command again"
        text = f"{trainer.folder} is saved at {place}; next: {again}"
        out.stderr.print(text, markup=False, soft_wrap=True)
    raise KeyboardInterrupt


def _print_end(out: Out, folder: Path, what: str) -> None:
    """Print what the training took and came to."""
    facts = standing(folder)
    out.say(f"{folder} holds the {what} after {counted(facts['step'], 'step')}")
    out.table("", ["", *COLUMNS], [[what, *(figures(facts.get(key)) for key in COLUMNS.values())]])
    for key in ("quality", "next", "then"):
        if key in facts:
            out.say(f"{key}: {facts[key]}")
    keys = [key for key in (*COLUMNS.values(), "quality") if key in facts]
    out.result({"out": str(folder), **{key: facts[key] for key in keys}})


def _print_estimate(out: Out, config: RunConfig, images: "Dataset | None", what: str) -> None:
    """Measure a few steps of the run and print what it would take."""
    from pidistill.training.estimate import estimate

    facts = estimate(config, images)
    now = datetime.datetime.now().astimezone()
    end = now + datetime.timedelta(seconds=facts["seconds"])
    facts["end"] = end.isoformat(timespec="seconds")
    per_process = f"{facts['micro_batches_per_process']} x {facts['micro_batch']}"
    parameters = dict(facts["parameters"])
    teacher_evaluations = {
        "teacher evaluations a step": facts["teacher_evaluations"],
        "teacher evaluations in all": facts["teacher_evaluations_in_all"],
    }
    rows = {
        f"parameters of the {what}": parameters.pop("student"),
        **{f"parameters of the {key}": n for key, n in parameters.items()},
        "processes": f"{facts['processes']} ({facts['strategy']})",
        "batch": f"{facts['batch_size']:,} ({per_process} in each process)",
        f"peak memory of a process ({facts['device']})": f"{facts['peak_memory'] / 1e9:.2f} GB",
        f"{what} evaluations a step": facts["student_evaluations"],
        **({} if config.teacher is None else teacher_evaluations),
        "seconds a step": facts["seconds_per_step"],
        "images/s": facts["images_per_second"],
        "before the first step": duration(facts["preparation_seconds"]),
        f"all {counted(facts['max_train_steps'], 'step')}": duration(facts["seconds"]),
        "end": f"{end:%Y-%m-%d %H:%M}",
    }
    cells = [[key, v if isinstance(v, str) else figures(v)] for key, v in rows.items()]
    out.table("what the run would take", ["", ""], cells)
    out.say("nothing was written; measured on a few steps, without checkpoints and previews")
    out.result(facts)
