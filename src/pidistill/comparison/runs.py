"""The runs of a comparison: what is missing is trained, what was cut off is resumed.

A run folder is held by the process that trains in it, so that several commands share a plan: each
takes the runs that no other one holds, and comes back to the others until all are finished.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill.errors import FolderHeldError, PidistillError
from pidistill.files import is_held, sha256_of
from pidistill.model_folder import weights_name
from pidistill.training.checkpoint import checksum, newest_checkpoint
from pidistill.training.clock import steps_by_clock
from pidistill.training.config import CHANGEABLE, CONFIG_FILE, RunConfig, write_config
from pidistill.training.log import read_log
from pidistill.training.run_folder import read_config

log = logging.getLogger("pidistill")

WAIT_SECONDS = 1.0
"""Between two looks at runs that other processes hold."""

NOT_IDENTITY = {*CHANGEABLE, "seed", "teacher", "data"} - {"max_train_steps"}
"""Settings that do not distinguish configurations: for teacher and data their content does."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run."""

    config: RunConfig
    folder: Path
    seconds: float | None = None
    """How long it trains, if that is not a number of steps; then `max_train_steps` is what has
    come of them so far (`as_it_stands`)."""

    def as_it_stands(self) -> "PlannedRun":
        """This run, with the number of steps that its newest checkpoint leads to."""
        checkpoint = {} if self.seconds is None else _checkpoint_of(self.folder)
        if self.seconds is None or not checkpoint:
            return self
        steps = steps_by_clock(checkpoint["step"], checkpoint["values"]["seconds"], self.seconds)
        config = self.config.model_copy(update={"max_train_steps": steps})
        return dataclasses.replace(self, config=config)

    def open(self) -> None:
        """Make the folder; or update the settings that may change when a run is resumed.

        Raises `PidistillError` when the folder holds another run.
        """
        file = self.folder / CONFIG_FILE
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_config(file, self.config)
        found = read_config(self.folder)
        same = identity_of(found, self.seconds) == identity_of(self.config, self.seconds)
        if not same or found.seed != self.config.seed:
            raise PidistillError(
                f"{self.folder} holds a run of another configuration; move it away, or choose "
                "another folder"
            )
        if found != self.config:
            write_config(file, self.config)

    def is_finished(self) -> bool:
        """Whether it has reached its last step, and the weights of that step are at the top.

        A run that was killed between the two is not finished: resuming it puts them there.
        """
        checkpoint = _checkpoint_of(self.folder)
        if checkpoint.get("step", 0) < self.config.max_train_steps:
            return False
        files = [self.folder / weights_name(rate) for rate in (0, *self.config.ema_rates)]
        sums = checkpoint["sha256"]
        return all(file.is_file() and checksum(file) == sums[file.name] for file in files)


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the results, except the seed, as JSON values.

    Defaults are left out, so that a setting that is added later does not change the identity.
    """
    settings = config.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True)
    return {**settings, "method": {**settings["method"], "name": config.method.name}}


def identity_of(config: RunConfig, seconds: float | None, *inputs: str | None) -> str:
    """A hash of all that decides the results of a run, except its seed: settings and `inputs`.

    For a run that trains for `seconds`, the number of steps is a result.
    """
    settings = deciding_settings(config)
    if seconds is not None:
        settings["max_train_steps"] = f"{seconds} seconds"
    return sha256_of([settings, *inputs])


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


def train_missing(
    runs: list[tuple[str, PlannedRun]],
    train: Callable[[str, PlannedRun], None],
    say: Callable[[str], None],
) -> dict[Path, str]:
    """Train the runs that are not finished, one after another; return errors by folder.

    `runs` come with names for people. `train` is called with a name, which says the place in the
    queue, and a run to train or resume; what it raises is an error of that run, but for an
    `OSError`, a full disk or a lost drive, which no other run would survive.
    """
    queue = [(f"[{n}/{len(runs)}] {name}", run) for n, (name, run) in enumerate(runs, start=1)]
    failures: dict[Path, str] = {}
    held: list[tuple[str, PlannedRun]] = []
    while queue:
        before, held = held, []
        for name, run in queue:
            try:
                _finish(name, run, train, say)
            except FolderHeldError:
                held.append((name, run))
            except OSError:
                raise
            except Exception as error:  # the other runs continue
                if not isinstance(error, PidistillError):
                    log.exception("%s failed", name)
                failures[run.folder] = " ".join(str(error).split()) or type(error).__name__
                say(f"{name}: {failures[run.folder]}")
        if held and held != before:
            say(f"other processes are training {', '.join(name for name, _ in held)}")
        if held == queue:
            time.sleep(WAIT_SECONDS)
        queue = held
    return failures


def _finish(
    name: str, run: PlannedRun, train: Callable[[str, PlannedRun], None], say: Callable[[str], None]
) -> None:
    """Bring a run to its end; raises `FolderHeldError` if another process is training it."""
    if is_held(run.folder):
        raise FolderHeldError(f"another process is working in {run.folder}")
    run = run.as_it_stands()
    run.open()
    if run.is_finished():
        say(f"{name}: finished before")
    else:
        train(name, run)
        run.as_it_stands().open()
