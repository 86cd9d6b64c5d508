"""From a recipe, or from run folders, to a plan: runs, their settings, their folders.

The folder of a run is named after the hash of its configuration: a run with other settings, another
teacher or another budget is never mistaken for it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pidistill import __version__
from pidistill.comparison.budget import steps_within
from pidistill.comparison.costs import Cost, measure_cost
from pidistill.comparison.recipe import Recipe, RunEntry, Sweep
from pidistill.data import Dataset, fingerprint, load_data
from pidistill.denoiser import Denoiser
from pidistill.files import read_json, sha256_of, write_json
from pidistill.methods import method_class
from pidistill.teachers import load_teacher
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.assemble import build_method
from pidistill.training.config import CHANGEABLE, RunConfig, parse_config, read_preset

NOT_IDENTITY = {*CHANGEABLE, "seed", "teacher", "data"} - {"max_train_steps"}
"""Settings that do not distinguish configurations: for teacher and data their content does."""

PACES_FILE = "paces.json"
"""In the folder of a comparison with a budget in seconds: the measured costs, by configuration."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run."""

    config: RunConfig
    folder: Path


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A row of a table: runs that differ in their seed only."""

    name: str
    identity: str
    """Hash of all that decides the results, except the seed."""
    runs: list[PlannedRun]
    """One per seed."""

    @property
    def config(self) -> RunConfig:
        """The config of its first run."""
        return self.runs[0].config

    @property
    def needs(self) -> str:
        """What its method trains on: noise, images or pairs."""
        return method_class(self.config.method.name).needs


@dataclasses.dataclass(frozen=True)
class Section:
    """A table: the runs of a recipe, or one of its sweeps."""

    title: str
    configurations: list[Configuration]
    sweep: Sweep | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is compared, and on what terms."""

    title: str
    budget: str
    """A sentence that says what a run may spend."""
    teacher: Denoiser
    reference: str | None
    num_samples: int
    evaluation_seed: int
    evaluations: list[int]
    """NFE at which students are measured."""
    sections: list[Section]
    recipe: Recipe | None = None

    def seeds(self) -> list[int]:
        """The training seeds of all runs."""
        every = (c for section in self.sections for c in section.configurations)
        return list(dict.fromkeys(run.config.seed for c in every for run in c.runs))

    def runs(self) -> list[tuple[str, PlannedRun]]:
        """Every run once, with a name: equal configurations of several sections share their runs.

        All configurations come with their first seed before any comes with its second, so that an
        interrupted comparison says something about all of them.
        """
        found: dict[Path, tuple[str, PlannedRun]] = {}
        for seed in self.seeds():
            for section in self.sections:
                prefix = f"{section.title}: " if section.sweep else ""
                for configuration in section.configurations:
                    name = f"{prefix}{configuration.name}, seed {seed}"
                    for run in configuration.runs:
                        if run.config.seed == seed:
                            found.setdefault(run.folder, (name, run))
        return list(found.values())


def identity_of(config: RunConfig, teacher: str, data: str | None) -> str:
    """The hash of all that decides the results of a run, except its seed.

    Args:
        config: The run's config.
        teacher: `teacher_fingerprint` of its teacher.
        data: Fingerprint of the images that it trains on; None if it trains on none.
    """
    return sha256_of([deciding_settings(config), teacher, data, __version__])


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the results, except the seed, as JSON values.

    Defaults are left out, so that a setting that is added later does not change the identity.
    """
    settings = config.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True)
    return {**settings, "method": {**settings["method"], "name": config.method.name}}


def plan_recipe(recipe: Recipe, out: str | Path) -> Plan:
    """Plan the runs of a recipe in `out/runs`; nothing but measured costs is written.

    Raises `PidistillError` when a run's settings are wrong, or when the budget does not pay for it.
    """
    planner = _Planner(recipe, Path(out))
    sections = []
    if recipe.run:
        own = [planner.configuration(entry, {}, f"run {entry.name!r}") for entry in recipe.run]
        sections.append(Section("Runs", own))
    for sweep in recipe.sweep:
        swept = [
            planner.configuration(entry, sweep.settings, f"{entry.name!r} of sweep {sweep.name!r}")
            for entry in sweep.entries()
        ]
        sections.append(Section(sweep.name, swept, sweep))
    return Plan(
        recipe.title,
        f"Every run may spend {recipe.budget}.",
        planner.teacher,
        recipe.reference,
        recipe.num_samples,
        recipe.evaluation_seed,
        recipe.evaluations,
        sections,
        recipe,
    )


class _Planner:
    """Plans the configurations of a recipe, which share their teacher and images."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.teacher = load_teacher(recipe.teacher)
        self.teacher_identity = teacher_fingerprint(self.teacher)
        self.data: Dataset | None = None
        self.data_identity: str | None = None
        if recipe.data is not None:
            self.data = load_data(recipe.data)
            self.data_identity = fingerprint(self.data)

    def configuration(self, entry: RunEntry, shared: dict[str, Any], origin: str) -> Configuration:
        """Plan the runs of `entry`, whose settings override `shared`."""
        recipe = self.recipe
        own = [recipe.settings, shared, entry.settings]
        layers = [read_preset(entry.preset), *own, {"teacher": recipe.teacher}]
        config = parse_config(layers, origin)
        if method_class(config.method.name).needs == "images":
            config = config.model_copy(update={"data": recipe.data})
        steps = steps_within(
            recipe.budget,
            config,
            build_method(config, self.teacher, self.data if config.data else None),
            lambda: self._kept_cost(config),
            own_steps=any("max_train_steps" in settings for settings in own),
            origin=origin,
        )
        planned = config.model_copy(update={"max_train_steps": steps})
        identity = self._identity(planned)
        folder = self.out / "runs" / f"{config.method.name}-{identity[:10]}"
        runs = [
            PlannedRun(
                planned.model_copy(update={"seed": seed}),
                folder.with_name(f"{folder.name}-seed{seed}"),
            )
            for seed in recipe.seeds
        ]
        return Configuration(entry.name, identity, runs)

    def _identity(self, config: RunConfig) -> str:
        data = self.data_identity if config.data else None
        return identity_of(config, self.teacher_identity, data)

    def _kept_cost(self, config: RunConfig) -> Cost:
        """The cost of a configuration as first measured, so that its runs can be resumed."""
        file = self.out / PACES_FILE
        kept: dict[str, Any] = read_json(file) if file.is_file() else {}
        key = self._identity(config)
        if key not in kept:
            kept[key] = measure_cost(config)._asdict()
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(file, kept)
        return Cost(**kept[key])
