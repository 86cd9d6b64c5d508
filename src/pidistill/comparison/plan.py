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
from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.methods import method_class
from pidistill.model_folder import weights_name
from pidistill.storage import read_json, sha256_of, weights_sha256, write_json
from pidistill.training.assemble import build_method
from pidistill.training.checkpoint import checksum, newest_checkpoint
from pidistill.training.config import (
    CHANGEABLE,
    CONFIG_FILE,
    RunConfig,
    merge,
    parse_config,
    read_preset,
    write_config,
)
from pidistill.training.lock import is_held
from pidistill.training.run_folder import read_config

IDENTITY_FILE = "identity.json"
"""In a run folder: the hash of its configuration."""

NOT_IDENTITY = {*CHANGEABLE, "seed", "teacher"} - {"max_train_steps"}
"""Keys that do not tell one configuration from another: the teacher's name, too, since its
fingerprint does."""

PACES_FILE = "paces.json"
"""In the folder of a comparison with a budget in seconds: what was measured, by configuration."""


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
    fingerprint = teacher_fingerprint(teacher)

    def plan_entry(entry: RunEntry, origin: str) -> Entry:
        own = merge(recipe.settings, entry.settings)
        layers = [read_preset(entry.preset), own, {"teacher": recipe.teacher}]
        config = parse_config(layers, origin)
        if method_class(config.method.name).needs == "images" and recipe.data is not None:
            layers.append({"data": recipe.data})
            config = parse_config(layers, origin)
        method = build_method(config, teacher, data if config.data else None)
        steps = steps_within(
            recipe.budget,
            config,
            method,
            lambda: _kept_pace(out, config, fingerprint, measure_pace),
            own_steps="max_train_steps" in own,
            origin=origin,
        )
        runs = []
        for seed in recipe.seeds:
            seeded = parse_config([*layers, {"max_train_steps": steps, "seed": seed}], origin)
            identity = identity_of(seeded, fingerprint)
            name = f"{config.method.name}-{identity[:10]}-seed{seed}"
            runs.append(PlannedRun(seeded, out / "runs" / name, identity))
        return Entry(
            entry.name, runs, method.needs, method.student_evaluations + method.target_evaluations
        )

    entries = [plan_entry(entry, f"run {entry.name!r}") for entry in recipe.run]
    sweeps = {
        sweep.name: [
            plan_entry(entry, f"{entry.name!r} of sweep {sweep.name!r}")
            for entry in sweep.entries()
        ]
        for sweep in recipe.sweep
    }
    return Plan(entries, sweeps)


def _kept_pace(
    out: Path, config: RunConfig, fingerprint: str, measure: Callable[[RunConfig], Pace]
) -> Pace:
    """The pace of a configuration as it was first measured."""
    file = out / PACES_FILE
    paces: dict[str, Any] = read_json(file) if file.is_file() else {}
    key = identity_of(config, fingerprint)
    if key not in paces:
        paces[key] = dataclasses.asdict(measure(config))
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, paces)
    return Pace(**paces[key])


def teacher_fingerprint(teacher: Denoiser) -> str:
    """A hash of what a teacher is: its weights, its noise levels and its kind."""
    facts = [
        type(teacher).__qualname__,
        teacher.sigma_min,
        teacher.sigma_max,
        teacher.sigma_data,
        teacher.sample_shape,
        teacher.num_classes,
        teacher.evaluations_per_call,
        weights_sha256(teacher),
    ]
    return sha256_of(facts)


def identity_of(config: RunConfig, fingerprint: str) -> str:
    """The hash of a configuration: all that decides a run but its seed.

    Settings that are left at their defaults do not count, so that a setting which a later version
    adds does not make another run of what was trained before it.

    Args:
        config: The config.
        fingerprint: That of its teacher (`teacher_fingerprint`): a spec such as `native:DIR` does
            not say which weights are in the folder.
    """
    facts = {
        "method": config.method.name,
        "config": config.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True),
        "teacher": fingerprint,
        "pidistill": __version__,
    }
    return sha256_of(facts)


def open_run(run: PlannedRun, fingerprint: str) -> None:
    """Make the folder of a run, or check that the one that is there is of this very run.

    Raises `PidistillError` when it holds another configuration.
    """
    file = run.folder / IDENTITY_FILE
    if not file.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_config(run.folder / CONFIG_FILE, run.config)
        write_json(file, {"identity": run.identity, "seed": run.config.seed})
    kept = read_json(file)
    found = read_config(run.folder)
    same = kept == {"identity": run.identity, "seed": run.config.seed}
    if not same or identity_of(found, fingerprint) != run.identity:
        raise PidistillError(
            f"{run.folder} holds a run of another configuration; move it away, or choose another "
            "--out"
        )


def is_finished(run: PlannedRun, warn: Callable[[str], None]) -> bool:
    """Whether the run has a whole checkpoint of its last step, and its weights are at the top.

    A run that died between the two is not finished: resuming it puts them there.
    """
    found = newest_checkpoint(run.folder / "state", warn)
    if found is None or found[1]["step"] < run.config.max_train_steps:
        return False
    names = [weights_name(rate) for rate in (0, *run.config.ema_rates)]
    files = [run.folder / name for name in names]
    sums = found[1]["sha256"]
    return all(file.is_file() and checksum(file) == sums[file.name] for file in files)


def take_run(
    queue: deque[tuple[str, PlannedRun]],
    fingerprint: str,
    *,
    on_finished: Callable[[str], None],
    on_held: Callable[[str], None],
) -> tuple[str, PlannedRun] | None:
    """Take the next run out of the queue that is neither finished nor held by another process.

    Those that are finished are taken out on the way, and those that are held go to the end.

    Args:
        queue: Runs by the name that tables call them.
        fingerprint: That of their teacher.
        on_finished: Called with the name of a run that is finished already.
        on_held: Called with the name of a run that another process trains.

    Returns:
        The run; None where there is none, for the moment (`queue` is not empty) or for good.
    """
    warn = logging.getLogger("pidistill").warning
    for _ in range(len(queue)):
        name, run = queue.popleft()
        open_run(run, fingerprint)
        if is_held(run.folder):
            on_held(name)
            queue.append((name, run))
        elif is_finished(run, warn):
            on_finished(name)
        else:
            return name, run
    return None
