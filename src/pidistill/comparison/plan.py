"""From a recipe to runs: their settings, their steps within the budget, and their folders.

The folder of a run is named after the hash of its configuration, and holds it: what was trained
with other settings, another teacher or another budget is never taken for it.
"""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill import __version__
from pidistill.comparison.budget import Pace, steps_within
from pidistill.comparison.recipe import Recipe, RunEntry
from pidistill.data import Dataset, fingerprint
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, sha256_of, write_json
from pidistill.methods import method_class
from pidistill.model_folder import weights_name
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.assemble import build_method
from pidistill.training.checkpoint import checksum, newest_checkpoint
from pidistill.training.config import (
    CHANGEABLE,
    CONFIG_FILE,
    RunConfig,
    parse_config,
    read_preset,
    write_config,
)
from pidistill.training.lock import is_held
from pidistill.training.log import read_log
from pidistill.training.run_folder import read_config

IDENTITY_FILE = "identity.json"
"""In a run folder: the hash of its configuration."""

NOT_IDENTITY = {*CHANGEABLE, "seed", "teacher", "data"} - {"max_train_steps"}
"""Keys that do not tell one configuration from another: the names of teacher and data, too, since
their fingerprints do."""

PACES_FILE = "paces.json"
"""In the folder of a comparison with a budget in seconds: what was measured, by configuration."""


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Hashes of what runs are made of beside their settings."""

    teacher: str
    """`teacher_fingerprint` of the teacher."""
    data: str | None
    """`data.fingerprint` of the images; None where there are none."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run: a configuration and a seed."""

    config: RunConfig
    folder: Path
    identity: str
    """Hash of the configuration, the seed left out."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a table: a configuration, and its runs, one a seed."""

    name: str
    runs: list[PlannedRun]
    needs: str
    """What its method trains on: noise, images or pairs."""
    student_evaluations: int
    """Evaluations of the student, and of copies of it, that a sample of a step costs."""

    @property
    def identity(self) -> str:
        """The hash of its configuration."""
        return self.runs[0].identity

    @property
    def config(self) -> RunConfig:
        """What decides its runs, but for the seed."""
        return self.runs[0].config


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a recipe."""

    entries: list[Entry]
    """Those of `[[run]]`."""
    sweeps: dict[str, list[Entry]]
    """Those of each `[[sweep]]`, by its name."""
    fingerprints: Fingerprints
    """Of the teacher and the images that its runs share."""

    def runs(self) -> list[tuple[str, PlannedRun]]:
        """Every run once, with a name: equal configurations of several tables share their runs.

        All configurations come with their first seed before any comes with its second, so that a
        comparison that is cut says something about all of them.
        """
        lines = [(entry.name, entry) for entry in self.entries]
        for sweep, entries in self.sweeps.items():
            lines += [(f"{sweep}: {entry.name}", entry) for entry in entries]
        found: dict[Path, tuple[str, PlannedRun]] = {}
        for turn in range(len(lines[0][1].runs)):
            for name, entry in lines:
                run = entry.runs[turn]
                found.setdefault(run.folder, (f"{name}, seed {run.config.seed}", run))
        return list(found.values())


def make_plan(
    recipe: Recipe,
    out: Path,
    teacher: Denoiser,
    data: Dataset | None,
    measure_pace: Callable[[RunConfig], Pace],
) -> Plan:
    """Plan the runs of a recipe in `out/runs`; nothing is written but measured paces.

    Args:
        recipe: The recipe.
        out: Folder of the comparison.
        teacher: The recipe's teacher.
        data: The recipe's images, or None.
        measure_pace: Measures a run's pace, for a budget in seconds. It is called once for a
            configuration; the answer is kept in `out`, so that its runs can be resumed.

    Raises:
        PidistillError: A run's settings are wrong, or it does not fit into the budget.
    """
    images = None if data is None else fingerprint(data)
    fingerprints = Fingerprints(teacher_fingerprint(teacher), images)

    def plan_entry(entry: RunEntry, shared: list[dict[str, Any]], origin: str) -> Entry:
        own = [*shared, entry.settings]
        layers = [read_preset(entry.preset), *own, {"teacher": recipe.teacher}]
        config = parse_config(layers, origin)
        if method_class(config.method.name).needs == "images" and recipe.data is not None:
            layers.append({"data": recipe.data})
            config = parse_config(layers, origin)
        method = build_method(config, teacher, data if config.data else None)
        steps = steps_within(
            recipe.budget,
            config,
            method,
            lambda: _kept_pace(out, config, fingerprints, measure_pace),
            own_steps=any("max_train_steps" in settings for settings in own),
            origin=origin,
        )
        runs = []
        for seed in recipe.seeds:
            seeded = parse_config([*layers, {"max_train_steps": steps, "seed": seed}], origin)
            identity = identity_of(seeded, fingerprints)
            name = f"{config.method.name}-{identity[:10]}-seed{seed}"
            runs.append(PlannedRun(seeded, out / "runs" / name, identity))
        return Entry(
            entry.name, runs, method.needs, method.student_evaluations + method.target_evaluations
        )

    shared = [recipe.settings]
    entries = [plan_entry(entry, shared, f"run {entry.name!r}") for entry in recipe.run]
    sweeps = {
        sweep.name: [
            plan_entry(entry, [*shared, sweep.settings], f"{entry.name!r} of sweep {sweep.name!r}")
            for entry in sweep.entries()
        ]
        for sweep in recipe.sweep
    }
    return Plan(entries, sweeps, fingerprints)


def _kept_pace(
    out: Path,
    config: RunConfig,
    fingerprints: Fingerprints,
    measure: Callable[[RunConfig], Pace],
) -> Pace:
    """The pace of a configuration as it was first measured."""
    file = out / PACES_FILE
    paces: dict[str, Any] = read_json(file) if file.is_file() else {}
    key = identity_of(config, fingerprints)
    if key not in paces:
        paces[key] = dataclasses.asdict(measure(config))
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, paces)
    return Pace(**paces[key])


def identity_of(config: RunConfig, fingerprints: Fingerprints) -> str:
    """The hash of a configuration: all that decides a run but its seed.

    Settings that are left at their defaults do not count, so that a setting which a later version
    adds does not make another run of what was trained before it.

    Args:
        config: The config.
        fingerprints: Of its teacher and of the images at hand, which count if it trains on some:
            a spec such as `native:DIR` does not say which weights are in the folder.
    """
    facts = {
        "method": config.method.name,
        "config": config.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True),
        "teacher": fingerprints.teacher,
        "data": None if config.data is None else fingerprints.data,
        "pidistill": __version__,
    }
    return sha256_of(facts)


def open_run(run: PlannedRun, fingerprints: Fingerprints) -> None:
    """Make the folder of a run, or check that the one that is there is of this very run.

    Settings that may change when a run is resumed are written anew.

    Raises `PidistillError` when it holds another configuration.
    """
    file, config_file = run.folder / IDENTITY_FILE, run.folder / CONFIG_FILE
    identity = {"identity": run.identity, "seed": run.config.seed}
    if not file.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_config(config_file, run.config)
        write_json(file, identity)
    found = read_config(run.folder)
    if read_json(file) != identity or identity_of(found, fingerprints) != run.identity:
        raise PidistillError(
            f"{run.folder} holds a run of another configuration; move it away, or choose another "
            "--out"
        )
    if found != run.config:
        write_config(config_file, run.config)


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """What the newest whole checkpoint of a run says of itself; empty where there is none."""
    found = newest_checkpoint(folder / "state", logging.getLogger("pidistill").warning)
    return {} if found is None else found[1]


def progress_of(folder: Path) -> dict[str, Any]:
    """How far a run has come: `step`, `seconds`, `teacher_evals`; empty where it has not begun.

    The newest checkpoint says so, since the log may be ahead of the weights; of a folder that was
    kept without its checkpoints the log does.
    """
    checkpoint = checkpoint_of(folder)
    if checkpoint:
        return {"step": checkpoint["step"], **checkpoint["values"]}
    log = read_log(folder)
    return log[-1] if log else {}


def is_finished(run: PlannedRun) -> bool:
    """Whether the run has a whole checkpoint of its last step, and its weights are at the top.

    A run that died between the two is not finished: resuming it puts them there.
    """
    checkpoint = checkpoint_of(run.folder)
    if checkpoint.get("step", 0) < run.config.max_train_steps:
        return False
    names = [weights_name(rate) for rate in (0, *run.config.ema_rates)]
    files = [run.folder / name for name in names]
    sums = checkpoint["sha256"]
    return all(file.is_file() and checksum(file) == sums[file.name] for file in files)


def take_run(
    queue: deque[tuple[str, PlannedRun]],
    fingerprints: Fingerprints,
    *,
    on_finished: Callable[[str], None],
    on_held: Callable[[str], None],
    on_broken: Callable[[str, PlannedRun, PidistillError], None],
) -> tuple[str, PlannedRun] | None:
    """Take the next run out of the queue that is neither finished nor held by another process.

    Those that are finished are taken out on the way, and those that are held go to the end.

    Args:
        queue: Runs by the name that tables call them.
        fingerprints: Those of the plan.
        on_finished: Called with the name of a run that is finished already.
        on_held: Called with the name of a run that another process trains.
        on_broken: Called with the name of a run whose checkpoints are all damaged, the run, and
            what is wrong.

    Returns:
        The run; None where there is none, for the moment (`queue` is not empty) or for good.
    """
    for _ in range(len(queue)):
        name, run = queue.popleft()
        if is_held(run.folder):
            on_held(name)
            queue.append((name, run))
            continue
        open_run(run, fingerprints)
        try:
            finished = is_finished(run)
        except PidistillError as error:
            on_broken(name, run, error)
            continue
        if not finished:
            return name, run
        on_finished(name)
    return None
