"""Training the runs of a plan: what is missing is trained, what was cut is resumed.

A run folder is held by the process that trains in it, so that several commands share a plan: each
takes the runs that no other one holds, and comes back to the others until all are finished.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill.comparison.plan import Plan, PlannedRun, deciding_settings
from pidistill.errors import FolderHeldError, PidistillError
from pidistill.files import is_held
from pidistill.model_folder import weights_name
from pidistill.training.checkpoint import checksum, newest_checkpoint
from pidistill.training.config import CONFIG_FILE, write_config
from pidistill.training.log import read_log
from pidistill.training.run_folder import read_config

log = logging.getLogger("pidistill")

WAIT_SECONDS = 1.0
"""Between two looks at runs that other processes hold."""


def train_missing(
    plan: Plan, train: Callable[[str, PlannedRun], None], say: Callable[[str], None]
) -> dict[Path, str]:
    """Train the runs that are not finished, one after another.

    Args:
        plan: The plan.
        train: Trains or resumes a run, given its name for people.
        say: Called with one-line notes.

    Returns:
        The errors of the runs that failed, by folder.

    Raises:
        OSError: A full disk or a lost drive, which no other run would survive.
        KeyboardInterrupt: `train` was interrupted.
    """
    runs = plan.runs()
    queue = [(f"[{n}/{len(runs)}] {name}", run) for n, (name, run) in enumerate(runs, start=1)]
    failures: dict[Path, str] = {}
    held: list[tuple[str, PlannedRun]] = []
    while queue:
        before, held = held, []
        for name, run in queue:
            try:
                done = _train_unless_held(name, run, train, say)
            except OSError:
                raise
            except Exception as error:  # the other runs go on
                if not isinstance(error, PidistillError):
                    log.exception("%s failed", name)
                failures[run.folder] = " ".join(str(error).split()) or type(error).__name__
                say(f"{name}: {failures[run.folder]}")
            else:
                held += [] if done else [(name, run)]
        if held and held != before:
            say(f"other processes are training {', '.join(name for name, _ in held)}")
        if held == queue:
            time.sleep(WAIT_SECONDS)
        queue = held
    return failures


def _train_unless_held(
    name: str,
    run: PlannedRun,
    train: Callable[[str, PlannedRun], None],
    say: Callable[[str], None],
) -> bool:
    """Bring the run to its end; False if another process holds its folder."""
    if is_held(run.folder):
        return False
    open_run(run)
    if is_finished(run):
        say(f"{name}: finished before")
        return True
    try:
        train(name, run)
    except FolderHeldError:  # another process was faster
        return False
    return True


def open_run(run: PlannedRun) -> None:
    """Make the folder of a run, or check that the folder holds this very run.

    Settings that may change when a run is resumed are updated.

    Raises `PidistillError` when it holds another configuration.
    """
    file = run.folder / CONFIG_FILE
    if not file.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_config(file, run.config)
    found = read_config(run.folder)
    same = deciding_settings(found) == deciding_settings(run.config)
    if not same or found.seed != run.config.seed:
        raise PidistillError(
            f"{run.folder} holds a run of another configuration; move it away, or choose another "
            "folder"
        )
    if found != run.config:
        write_config(file, run.config)


def is_finished(run: PlannedRun) -> bool:
    """Whether the run has reached its last step, and the weights of that step are at the top.

    A run that was killed between the two is not finished: resuming it puts them there.
    """
    checkpoint = _checkpoint_of(run.folder)
    if checkpoint.get("step", 0) < run.config.max_train_steps:
        return False
    files = [run.folder / weights_name(rate) for rate in (0, *run.config.ema_rates)]
    sums = checkpoint["sha256"]
    return all(file.is_file() and checksum(file) == sums[file.name] for file in files)


def progress_of(folder: Path) -> dict[str, Any]:
    """How far a run has come: `step`, `seconds`, `teacher_evals`; empty before its first step.

    The newest checkpoint tells, since the log may be ahead of the weights; a folder without its
    checkpoints has the log only.
    """
    checkpoint = _checkpoint_of(folder)
    if checkpoint:
        return {"step": checkpoint["step"], **checkpoint["values"]}
    lines = read_log(folder)
    return lines[-1] if lines else {}


def _checkpoint_of(folder: Path) -> dict[str, Any]:
    """The manifest of a run's newest undamaged checkpoint; empty where there is none."""
    found = newest_checkpoint(folder / "state", log.warning)
    return {} if found is None else found[1]
