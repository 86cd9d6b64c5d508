"""A run from its settings to a trained student, for notebooks and for the command line.

Imports torch only when it trains.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.presets import read_preset
from pidistill.processes import is_main_process, was_restarted
from pidistill.progress import Advance
from pidistill.progress import progress as show_progress
from pidistill.settings import read_toml

if TYPE_CHECKING:
    from torch import nn

    from pidistill.data import Dataset
    from pidistill.denoiser import Denoiser
    from pidistill.methods.settings import MethodSettings
    from pidistill.students.base import Student
    from pidistill.training.config import RunConfig
    from pidistill.training.trainer import StepReport, Trainer


DEFAULT_PRESET = "fast"
"""What a distillation starts from."""


def distill(
    teacher: "str | Denoiser",
    *,
    out: str | Path,
    method: "str | dict[str, Any] | MethodSettings" = "pid",
    network: "nn.Module | dict[str, Any] | None" = None,
    data: "str | Dataset | None" = None,
    preset: str | None = None,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> "Student":
    """Distil a teacher into a one-step student, as `pidistill distill` does.

    Ctrl-C ends training after the step under way, saves the state and raises `KeyboardInterrupt`;
    the same call with `resume=True` continues.

    Args:
        teacher: A denoiser, or the spec of one (`pidistill.load_teacher`).
        out: The run folder, which must be new or empty unless `resume` is set.
        method: Name of the method; or its settings, as a table such as
            `{"name": "pid", "num_nodes": 40}` or as an object such as `PIDSettings(num_nodes=40)`.
        network: The network to train: a module of any class, called as
            `network(u, c_noise, label)`, or a table with `name` and `config` of one of
            `pidistill.networks.NETWORKS`. None copies the teacher's.
        data: A data set or the spec of one, for methods that train on images.
        preset: The preset to start from; None means `fast`, or the config of the resumed run.
        resume: Whether to continue the run in `out`.
        progress: Whether to show progress on stderr.
        settings: Other fields of `pidistill.RunConfig`, such as `max_train_steps=1000`.

    Returns:
        The student with its averaged weights, in eval mode, without gradients, on the device where
        it was trained.

    Raises:
        PidistillError: A setting is unknown or wrong, something that it names is missing or does
            not fit, or `out` holds another run.
        KeyboardInterrupt: Training was interrupted; the state is saved.
    """
    from torch import nn

    from pidistill.training.assemble import build_trainer

    layer = {
        **settings,
        "teacher": teacher if isinstance(teacher, str) else None,
        "network": network if isinstance(network, dict) else None,
        "data": data if isinstance(data, str) else None,
    }
    layers = [{"method": _method_table(method)}, layer]
    config = resolve_config(user_path(out), layers, preset=preset, resume=resume)
    trainer = build_trainer(
        config,
        user_path(out),
        teacher=None if isinstance(teacher, str) else teacher,
        network=network if isinstance(network, nn.Module) else None,
        data=None if isinstance(data, str) else data,
    )
    show = show_progress if progress and is_main_process() else _hide_progress
    with stoppable(_print_to_stderr, ("SIGINT",)) as should_stop:
        drive(trainer, should_stop, show)
    if trainer.step < config.max_train_steps:
        raise KeyboardInterrupt
    return _averaged_student(trainer)


def _method_table(method: "str | dict[str, Any] | MethodSettings") -> dict[str, Any]:
    if isinstance(method, str):
        return {"name": method}
    return method if isinstance(method, dict) else method.model_dump()


def _averaged_student(trainer: "Trainer") -> "Student":
    """The student that was trained, with the weights that its run folder samples with."""
    from pidistill.model_folder import weights_name
    from pidistill.sharding import load_whole
    from pidistill.storage import read_tensors
    from pidistill.students.base import Student

    trainer.processes.wait()  # for the one that writes
    student = trainer.method.student
    assert isinstance(student, Student)
    load_whole(student, read_tensors(trainer.folder / weights_name(trainer.config.ema_rates[0])))
    return student.eval().requires_grad_(False)


def resolve_config(
    folder: Path | None,
    layers: list[dict[str, Any]],
    *,
    preset: str | None = None,
    default_preset: str = DEFAULT_PRESET,
    file: Path | None = None,
    resume: bool = False,
) -> "RunConfig":
    """The config of a run: a preset, below a file of settings, below `layers`.

    Args:
        folder: The run folder; None if nothing will be written.
        layers: Tables of settings, each above the one before; None stands for a setting not given.
        preset: The preset; None means the one that the file names as `base`, or `default_preset`.
        default_preset: The preset if none is named.
        file: A TOML file of settings.
        resume: Whether to continue the run in `folder`, if there is one. Its config takes the place
            of preset and file if neither is given, and the result must be the same run. Processes
            that `torchrun` restarted resume in any case.

    Raises:
        PidistillError: A setting is wrong, or `folder` holds a run that is not to be continued.
    """
    from pidistill.training.config import CONFIG_FILE, parse_config, require_same_run

    resume = resume or was_restarted()
    if folder is not None and not resume:
        _require_unused(folder)
    given = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    saved_file = folder / CONFIG_FILE if folder is not None and resume else None
    if saved_file is None or not saved_file.is_file():
        below = _start(preset, default_preset, file)
        return parse_config([*below, *given], origin=str(file or "settings"))
    saved = read_toml(saved_file)
    untouched = preset is None and file is None
    below = [saved] if untouched else _start(preset, default_preset, file)
    config = parse_config([*below, *given], origin=str(file or saved_file))
    require_same_run(parse_config([saved], origin=str(saved_file)), config, saved_file.parent)
    return config


def _start(preset: str | None, default_preset: str, file: Path | None) -> list[dict[str, Any]]:
    """The settings of the preset and of the file."""
    table = {} if file is None else read_toml(file)
    base = table.pop("base", default_preset)
    return [read_preset(preset or base), table]


def _require_unused(folder: Path) -> None:
    """Raise `PidistillError` if the folder holds more than a lock and temporary files."""
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise PidistillError(
            f"{folder} is not empty; resume the run in it (--resume, or resume=True), or choose "
            "another folder"
        )


STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; what schedulers send before they kill; what SLURM sends early on request
(`sbatch --signal=USR1@90`); a terminal that closes."""


@contextlib.contextmanager
def stoppable(
    say: Callable[[str], None], signals: tuple[str, ...] = STOP_SIGNALS
) -> Iterator[Callable[[], bool]]:
    """Turn the first of `signals` into a request to stop; a second Ctrl-C stops at once.

    A signal that is ignored, as SIGHUP is under `nohup`, stays ignored. Yields a function that says
    whether a stop was asked for. Outside the main thread, where signals cannot be caught, nothing
    is changed.
    """
    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked = True
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):  # the terminal may be gone
                say(f"stopping ({name}): the state is saved after this step; Ctrl-C stops at once")

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in signals):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def drive(
    trainer: "Trainer",
    should_stop: Callable[[], bool],
    show: Callable[[str, int, str], AbstractContextManager[Advance]],
    *,
    title: str = "training",
    on_step: "Callable[[StepReport], None] | None" = None,
) -> None:
    """Train until the end or until `should_stop` is true, under a progress bar.

    Args:
        trainer: The trainer.
        should_stop: Asked after every step; the state is saved before training stops.
        show: Shows progress, called as `pidistill.progress.progress`.
        title: What the bar says.
        on_step: Called after every step.

    Raises:
        KeyboardInterrupt: It was stopped before the first step; what is done is kept.
    """
    with contextlib.ExitStack() as stack:
        advance, seen = None, 0
        for preparation in trainer.prepare():
            if advance is None:
                bar = show(preparation.title, preparation.total, preparation.unit)
                advance = stack.enter_context(bar)
            advance(preparation.done - seen)
            seen = preparation.done
            if should_stop():
                raise KeyboardInterrupt
    total = trainer.config.max_train_steps * trainer.config.batch_size
    with show(title, total, "images") as advance:
        seen = 0
        for report in trainer.run(should_stop):
            advance(report.images - seen, f"step {report.step} loss {report.loss:.4g}")
            seen = report.images
            if on_step is not None:
                on_step(report)


def _print_to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def _hide_progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    yield lambda count, text="": None
