"""A plan over run folders that exist already."""

from pathlib import Path

from pidistill.comparison.plan import (
    Configuration,
    Plan,
    PlannedRun,
    Section,
    deciding_settings,
)
from pidistill.comparison.train import progress_of
from pidistill.errors import PidistillError
from pidistill.files import read_json, sha256_of
from pidistill.teachers import load_teacher
from pidistill.training.run_folder import read_config


def plan_folders(
    folders: list[Path], *, reference: str | None = None, num_samples: int = 5000, seed: int = 0
) -> Plan:
    """Plan to measure the runs in `folders` on equal terms, as far as they are trained.

    Args:
        folders: Run folders; runs that differ in their seed only become one configuration.
        reference: What Frechet distances are taken to; None takes what the runs were evaluated on,
            if it is the same for all.
        num_samples: Samples that each run is measured with.
        seed: Seed of their noise.

    Raises:
        PidistillError: The runs do not share their teacher, one has no finished training step, or
            two have the same configuration and seed.
    """
    configurations = _configurations(folders)
    specs = {folder: read_config(folder).teacher for folder in folders}
    for folder, spec in specs.items():
        if spec is None:
            raise PidistillError(f"{folder} was not distilled from a teacher; leave it out")
        if spec != specs[folders[0]]:
            raise PidistillError(
                f"{folder} has the teacher {spec}, {folders[0]} has {specs[folders[0]]}; compare "
                "runs of one teacher"
            )
    return Plan(
        f"{len(folders)} runs",
        "The table says what the runs spent.",
        load_teacher(str(specs[folders[0]])),
        reference or _shared_reference(folders),
        num_samples,
        seed,
        [1, 2, 4],
        [Section("Runs", configurations)],
    )


def _configurations(folders: list[Path]) -> list[Configuration]:
    groups: dict[str, list[PlannedRun]] = {}
    for folder in folders:
        config, step = read_config(folder), progress_of(folder).get("step", 0)
        if not step:
            raise PidistillError(f"{folder} has no finished training step; train it first")
        trained = config.model_copy(update={"max_train_steps": step})
        identity = sha256_of([deciding_settings(trained), trained.teacher, trained.data])
        groups.setdefault(identity, []).append(PlannedRun(trained, folder))
    for runs in groups.values():
        if len({run.config.seed for run in runs}) < len(runs):
            named = ", ".join(str(run.folder) for run in runs)
            raise PidistillError(f"{named} have the same configuration and seed; keep one of them")
    unique = len({folder.name for folder in folders}) == len(folders)
    return [
        Configuration(
            f"{runs[0].config.method.name} "
            f"({', '.join(r.folder.name if unique else str(r.folder) for r in runs)})",
            identity,
            runs,
        )
        for identity, runs in groups.items()
    ]


def _shared_reference(folders: list[Path]) -> str | None:
    files = [folder / "metrics.json" for folder in folders]
    found = {read_json(file).get("reference") for file in files if file.is_file()}
    return found.pop() if len(found) == 1 else None
