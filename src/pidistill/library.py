"""A run from its settings to a trained student, for notebooks and for the command line.

Imports torch only when it trains.
"""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.presets import read_preset
from pidistill.processes import is_main_process, was_restarted
from pidistill.progress import Show, no_progress
from pidistill.progress import progress as show_progress
from pidistill.settings import read_toml

if TYPE_CHECKING:
    from torch import nn

    from pidistill.data import Dataset
    from pidistill.denoiser import Denoiser
    from pidistill.methods.settings import MethodSettings
    from pidistill.students.base import Student
    from pidistill.training.config import RunConfig
    from pidistill.training.log import StepReport
    from pidistill.training.trainer import Trainer

DEFAULT_PRESET = "matched"
"""What a distillation starts from, unless it names a method that this preset is not made for."""
METHOD_PRESET = "fast"
"""What a distillation by such a method starts from."""
SECONDS_BETWEEN_LOSSES = 0.5
"""How often progress shows a new loss; reading one waits for the accelerator."""


def distill(
    teacher: "str | Path | Denoiser",
    *,
    out: str | Path,
    method: "str | dict[str, Any] | MethodSettings | None" = None,
    network: "nn.Module | dict[str, Any] | None" = None,
    data: "str | Path | Dataset | None" = None,
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
            `{"name": "pid", "num_nodes": 40}` or an object. None means the preset's.
        network: The network to train: a module of any class, called as
            `network(u, c_noise, label)`, or a table with `name` and `config` of one of
            `pidistill.networks.NETWORKS`. None copies the teacher's.
        data: A data set or the spec of one, for methods that train on images.
        preset: The preset to start from; None: that of the resumed run, or `preset_for` the method.
        resume: Whether to continue the run in `out`.
        progress: Whether to show progress on stderr.
        settings: Other fields of `pidistill.RunConfig`, such as `max_train_steps=1000`.

    Returns:
        The student with its averaged weights, in eval mode, on the device where it was trained.

    Raises:
        PidistillError: A setting is unknown or wrong, something that it names is missing or does
            not fit, or `out` holds another run.
        KeyboardInterrupt: Training was interrupted; the state is saved.
    """
    from torch import nn

    from pidistill.training.assemble import build_trainer

    if isinstance(method, str):
        method = {"name": method}
    layer = {
        **settings,
        "method": method if isinstance(method, dict | None) else method.model_dump(),
        "teacher": _spec(teacher),
        "network": network if isinstance(network, dict) else None,
        "data": _spec(data),
    }
    trainer = build_trainer(
        resolve_config(user_path(out), [layer], preset=preset, resume=resume),
        user_path(out),
        teacher=None if isinstance(teacher, str | Path) else teacher,
        network=network if isinstance(network, nn.Module) else None,
        data=None if isinstance(data, str | Path) else data,
    )
    return _train(trainer, progress)


def _spec(named: Any) -> str | None:
    return str(named) if isinstance(named, str | Path) else None


def _train(trainer: "Trainer", progress: bool) -> "Student":
    """Train to the end; the student with the weights that its run folder samples with."""
    from pidistill.model_folder import weights_name
    from pidistill.sharding import load_whole
    from pidistill.storage import read_tensors
    from pidistill.students.base import Student

    show = show_progress if progress and is_main_process() else no_progress
    with stoppable(lambda text: print(text, file=sys.stderr), ("SIGINT",)) as should_stop:  # noqa: T201
        drive(trainer, should_stop, show)
    if trainer.step < trainer.config.max_train_steps:
        raise KeyboardInterrupt
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
    default_preset: str | None = None,
    file: Path | None = None,
    resume: bool = False,
) -> "RunConfig":
    """The config of a run: a preset, below a TOML file of settings, below `layers`.

    The preset is the one that is named, or that the file names as `base`, or `default_preset`, or,
    if that is None, the one for the method (`preset_for`). In the layers, the later above the
    earlier, None stands for a setting not given. `folder` is the run folder, or None if nothing
    will be written.

    To `resume` is to continue the run in `folder`, if there is one: its config takes the place of
    preset and file if neither is given, and the result must be the same run. Processes that
    `torchrun` restarted resume in any case.

    Raises `PidistillError` when a setting is wrong, or `folder` holds a run that is not to be
    continued.
    """
    from pidistill.training.config import CONFIG_FILE, parse_config, require_same_run
    from pidistill.training.log import PREVIEWS

    resume = resume or was_restarted()
    entries = folder.iterdir() if folder is not None and folder.is_dir() else ()
    if not resume and any(entry.name[0] != "." and entry.name != PREVIEWS for entry in entries):
        raise PidistillError(
            f"{folder} is not empty; resume the run in it (--resume, or resume=True), or choose "
            "another folder"
        )
    layers = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    saved_file = folder / CONFIG_FILE if folder is not None and resume else None
    if saved_file is not None and not saved_file.is_file():
        saved_file = None
    saved = None if saved_file is None else read_toml(saved_file)
    if saved is not None and preset is None and file is None:
        below = [saved]
    else:
        table = {} if file is None else read_toml(file)
        base = table.pop("base", default_preset or preset_for([table, *layers]))
        below = [read_preset(preset or base), table]
    config = parse_config([*below, *layers], origin=str(file or saved_file or "settings"))
    if saved is not None and saved_file is not None:
        old = parse_config([saved], origin=str(saved_file))
        require_same_run(old, config, saved_file.parent)
    return config


def preset_for(layers: list[dict[str, Any]]) -> str:
    """The preset that a distillation starts from: `matched`, or `fast` for most other methods."""
    name = "correction"
    for layer in layers:
        table = layer.get("method")
        name = table.get("name", name) if isinstance(table, dict) else name
    return DEFAULT_PRESET if name in ("correction", "pid-map") else METHOD_PRESET


STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; what schedulers send before they kill; what SLURM sends early on request
(`sbatch --signal=USR1@90`); a terminal that closes."""


@contextlib.contextmanager
def stoppable(
    say: Callable[[str], None], signals: tuple[str, ...] = STOP_SIGNALS
) -> Iterator[Callable[[], bool]]:
    """Turn the first of `signals` into a request to stop; a second Ctrl-C stops at once.

    Yields a function that says whether a stop was asked for. A signal that is ignored, as SIGHUP is
    under `nohup`, stays ignored, and so do all outside the main thread, which cannot catch them.
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
    show: Show,
    *,
    title: str = "training",
    on_step: "Callable[[StepReport], None] | None" = None,
    time_limit: float | None = None,
) -> None:
    """Train until the end or until `should_stop`, asked after every step; then the state is saved.

    `on_step` is called after every step. A `time_limit`, in seconds of training, replaces the
    number of steps. Raises `KeyboardInterrupt` when training was stopped
    before the first step; what is done is kept.
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
    total, unit = trainer.config.max_train_steps * trainer.config.batch_size, "images"
    if time_limit is not None:
        from pidistill.training.clock import by_the_clock

        total, unit = math.ceil(time_limit), "s of training"
        should_stop = by_the_clock(trainer, time_limit, should_stop)
    with show(title, total, unit) as advance:
        seen, loss, read = 0, "", -math.inf
        for report in trainer.run(should_stop):
            done = report.images if time_limit is None else min(total, int(report.seconds))
            steps, now = trainer.config.max_train_steps, time.monotonic()
            if now > read + SECONDS_BETWEEN_LOSSES or report.step == steps:
                loss, read = f"loss {report.loss:.4g}", now
            advance(done - seen, f"step {report.step} of {steps}, {loss}")
            seen = done
            if on_step is not None:
                on_step(report)
