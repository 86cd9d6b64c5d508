"""Run folders that are there, as entries of a comparison."""

from pathlib import Path

from pidistill.comparison.plan import Entry, PlannedRun, identity_of, teacher_fingerprint
from pidistill.data import load_data
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.storage import read_json
from pidistill.teachers import load_teacher
from pidistill.training.assemble import build_method
from pidistill.training.log import read_log
from pidistill.training.run_folder import read_config


def teacher_of(folders: list[Path]) -> Denoiser:
    """The teacher that all runs share.

    Raises `PidistillError` when they have none, or several.
    """
    specs = {folder: read_config(folder).teacher for folder in folders}
    first = specs[folders[0]]
    for folder, spec in specs.items():
        if spec is None:
            raise PidistillError(f"{folder} was not distilled from a teacher; leave it out")
        if spec != first:
            raise PidistillError(
                f"{folder} has the teacher {spec}, {folders[0]} has {first}; compare runs of one "
                "teacher"
            )
    assert first is not None
    return load_teacher(first)


def reference_of(folders: list[Path]) -> str | None:
    """The reference that the runs were evaluated on; None where none was, or they differ."""
    files = [folder / "metrics.json" for folder in folders]
    found = {read_json(file).get("reference") for file in files if file.is_file()}
    return found.pop() if len(found) == 1 else None


def entries_of(folders: list[Path], teacher: Denoiser) -> list[Entry]:
    """The runs, those that differ by their seed only in one entry.

    Raises `PidistillError` when a folder holds no run that was logged, or is named twice.
    """
    fingerprint = teacher_fingerprint(teacher)
    groups: dict[str, list[PlannedRun]] = {}
    for folder in folders:
        config, log = read_config(folder), read_log(folder)
        if not log:
            raise PidistillError(f"{folder} holds no finished training step; train it first")
        done = config.model_copy(update={"max_train_steps": log[-1]["step"]})
        run = PlannedRun(done, folder, identity_of(done, fingerprint))
        groups.setdefault(run.identity, []).append(run)
    entries = []
    for runs in groups.values():
        config = runs[0].config
        seeds = [run.config.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(str(run.folder) for run in runs)
            raise PidistillError(f"{names} are runs of one configuration and seed; name one")
        data = None if config.data is None else load_data(config.data)
        method = build_method(config, teacher, data)
        name = ", ".join(run.folder.name for run in runs)
        entries.append(
            Entry(
                f"{config.method.name} ({name})",
                runs,
                method.needs,
                method.student_evaluations + method.target_evaluations,
            )
        )
    return entries
