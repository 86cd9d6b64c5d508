"""From a recipe, or from run folders, to a plan: what is compared, and on what terms.

The folder of a run is named after the hash of its configuration: a run with other settings, another
teacher or another budget is never mistaken for it.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from pidistill import __version__
from pidistill.comparison.costs import Cost, allowance, measure_cost
from pidistill.comparison.recipe import Recipe, RunEntry, Sweep
from pidistill.comparison.runs import PlannedRun, identity_of, progress_of
from pidistill.data import fingerprint, load_data
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, write_json
from pidistill.methods import method_class
from pidistill.methods.base import Method
from pidistill.methods.settings import rate_by_size
from pidistill.teachers import load_teacher
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.assemble import build_method
from pidistill.training.config import INPUTS_FILE, RunConfig, parse_config, read_preset
from pidistill.training.run_folder import is_own_teacher, read_config

PACES_FILE = "paces.json"
"""In the folder of a comparison with a budget in seconds: the measured costs, by configuration."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A row of a table: runs that differ in their seed only."""

    name: str
    identity: str
    """Hash of all that decides the results, except the seed."""
    runs: list[PlannedRun]
    """One per seed."""
    inputs: tuple[str | None, ...] = ()
    """Hashes of teacher and images, and the version, for the identities of runs."""
    rate: float | None = None
    """The highest learning rate of its student."""
    search: "Search | None" = None
    """How its learning rate was chosen, if it was."""

    @property
    def config(self) -> RunConfig:
        """The config of its first run."""
        return self.runs[0].config


@dataclasses.dataclass(frozen=True)
class Search:
    """How the learning rate of a configuration was chosen."""

    multiple: float
    """The one that was chosen, of the rates as they are set."""
    results: dict[float, float | None]
    """What was found at each multiple, in the order of the tries; None where the run failed."""
    is_edge: bool
    """Whether a smaller or larger multiple might be better still."""
    teacher_evals: int
    """Of all tries together."""
    teacher_backwards: int
    seconds: float


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
    features: str = "auto"
    """The features of Frechet distances, as for `evaluate`."""

    def configurations(self) -> list[Configuration]:
        """Those of all sections."""
        return [c for section in self.sections for c in section.configurations]

    def seeds(self) -> list[int]:
        """The training seeds of all runs."""
        return list(dict.fromkeys(r.config.seed for c in self.configurations() for r in c.runs))

    def runs(self) -> list[tuple[str, PlannedRun]]:
        """Every run once, with a name: equal configurations of several sections share their runs.

        All configurations come with their first seed before any comes with its second, so that an
        interrupted comparison says something about all of them.
        """
        found: dict[Path, tuple[str, PlannedRun]] = {}
        for section in self.sections:
            prefix = f"{section.title}: " if section.sweep else ""
            for configuration in section.configurations:
                for run in configuration.runs:
                    name = f"{prefix}{configuration.name}, seed {run.config.seed}"
                    found.setdefault(run.folder, (name, run))
        seeds = self.seeds()
        return sorted(found.values(), key=lambda named: seeds.index(named[1].config.seed))


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
        recipe.features,
    )


class _Planner:
    """Plans the configurations of a recipe, which share their teacher and images."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.teacher = load_teacher(recipe.teacher)
        self.teacher_identity = teacher_fingerprint(self.teacher)
        self.data = None if recipe.data is None else load_data(recipe.data)
        self.data_identity = None if self.data is None else fingerprint(self.data)

    def configuration(self, entry: RunEntry, shared: dict[str, Any], origin: str) -> Configuration:
        """Plan the runs of `entry`, whose settings override `shared`."""
        recipe = self.recipe
        own = [recipe.settings, shared, entry.settings]
        layers = [read_preset(entry.preset), *own, {"teacher": recipe.teacher}]
        config = parse_config(layers, origin)
        if method_class(config.method.name).needs == "images":
            config = config.model_copy(update={"data": recipe.data})
        inputs = (
            self.teacher_identity,
            self.data_identity if config.data else None,
            __version__,
        )
        method = build_method(config, self.teacher, self.data if config.data else None)
        steps, seconds = allowance(
            recipe.budget,
            config,
            method,
            functools.partial(self._kept_cost, config, inputs),
            own_steps=any("max_train_steps" in settings for settings in own),
            origin=origin,
        )
        config = config.model_copy(update={"max_train_steps": steps})
        return Configuration(
            entry.name,
            identity_of(config, seconds, *inputs),
            planned_runs(config, seconds, inputs, recipe.seeds, self.out / "runs"),
            inputs,
            highest_rate(config, method),
        )

    def _kept_cost(self, config: RunConfig, inputs: tuple[str | None, ...]) -> Cost:
        """The cost of a configuration as first measured, so that its runs can be resumed."""
        file = self.out / PACES_FILE
        kept: dict[str, Any] = read_json(file) if file.is_file() else {}
        key = identity_of(config, None, *inputs)
        if key not in kept:
            kept[key] = measure_cost(config)._asdict()
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(file, kept)
        return Cost(**kept[key])


def planned_runs(
    config: RunConfig,
    seconds: float | None,
    inputs: tuple[str | None, ...],
    seeds: list[int],
    folder: Path,
) -> list[PlannedRun]:
    """The runs of a configuration, one per seed, each in its own place in `folder`."""
    name = f"{config.method.name}-{identity_of(config, seconds, *inputs)[:10]}"
    return [
        PlannedRun(config.model_copy(update={"seed": seed}), folder / f"{name}-seed{seed}", seconds)
        for seed in seeds
    ]


def highest_rate(config: RunConfig, method: Method) -> float:
    """The highest learning rate of the student, in its first phase."""
    part = method.parts()[0]
    size = sum(parameter.numel() for parameter in part.module.parameters())
    rate = (part.optimizer or config).learning_rate or rate_by_size(size)
    return config.learning_rate_scale * rate


def plan_folders(
    folders: list[Path],
    *,
    reference: str | None = None,
    num_samples: int = 5000,
    seed: int = 0,
    features: str = "auto",
) -> Plan:
    """Plan to measure the runs in `folders` on equal terms, as far as they are trained.

    Runs that differ in their seed only become one configuration. Without a `reference` it is what
    the runs were evaluated on, if it is the same for all.

    Raises `PidistillError` when the runs do not share their teacher, one has no finished training
    step, or two have the same configuration and seed.
    """
    runs = [PlannedRun(_config_so_far(folder), folder) for folder in folders]
    for run in runs:
        if run.config.teacher is None:
            raise PidistillError(f"{run.folder} has no teacher spec in its config; remove it")
    spec = str(runs[0].config.teacher)
    teacher = load_teacher(spec)
    for run in runs:
        known = (run.folder / INPUTS_FILE).is_file()
        if not (is_own_teacher(run.folder, teacher) if known else run.config.teacher == spec):
            raise PidistillError(
                f"{run.folder} was trained with another teacher, {run.config.teacher}, than "
                f"{spec} is now; compare runs of one teacher"
            )
    files = [folder / "metrics.json" for folder in folders]
    references = {read_json(file).get("reference") for file in files if file.is_file()}
    return Plan(
        f"{len(folders)} runs",
        "The table says what the runs spent.",
        teacher,
        reference or (references.pop() if len(references) == 1 else None),
        num_samples,
        seed,
        [1, 2, 4],
        [Section("Runs", _configurations_of(runs))],
        features=features,
    )


def _config_so_far(folder: Path) -> RunConfig:
    """The config of the run as far as it was trained."""
    config, step = read_config(folder), progress_of(folder).get("step", 0)
    if not step:
        raise PidistillError(f"{folder} has no finished training step; train it first")
    return config.model_copy(update={"max_train_steps": step})


def _configurations_of(runs: list[PlannedRun]) -> list[Configuration]:
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        identity = identity_of(run.config, None, run.config.data)
        groups.setdefault(identity, []).append(run)
    unique = len({run.folder.name for run in runs}) == len(runs)
    configurations = []
    for identity, group in groups.items():
        named = ", ".join(run.folder.name if unique else str(run.folder) for run in group)
        if len({run.config.seed for run in group}) < len(group):
            raise PidistillError(f"{named} have the same configuration and seed; keep one of them")
        name = f"{group[0].config.method.name} ({named})"
        configurations.append(Configuration(name, identity, group))
    return configurations
