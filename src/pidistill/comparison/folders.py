"""Run folders that are there, as entries of a comparison."""

from pathlib import Path

from pidistill.comparison.plan import (
    Entry,
    Fingerprints,
    PlannedRun,
    identity_of,
    progress_of,
)
from pidistill.data import fingerprint, load_data
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, sha256_of
from pidistill.teachers import load_teacher
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.assemble import build_method
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
    """The runs as far as they have come, those that differ by their seed only in one entry.

    Raises `PidistillError` when a folder holds no training step, or is named twice.
    """
    configs = {folder: read_config(folder) for folder in folders}
    data = {spec: load_data(spec) for spec in {config.data for config in configs.values()} if spec}
    hashes = {spec: fingerprint(images) for spec, images in data.items()}
    of_teacher = teacher_fingerprint(teacher)
    groups: dict[str, list[PlannedRun]] = {}
    for folder in folders:
        config, step = configs[folder], progress_of(folder).get("step", 0)
        if not step:
            raise PidistillError(f"{folder} holds no finished training step; train it first")
        of_data = None if config.data is None else hashes[config.data]
        planned = identity_of(config, Fingerprints(of_teacher, of_data))
        done = config.model_copy(update={"max_train_steps": step})
        run = PlannedRun(done, folder, sha256_of([planned, step]))
        groups.setdefault(run.identity, []).append(run)
    names = [folder.name for folder in folders]
    entries = []
    for runs in groups.values():
        config = runs[0].config
        seeds = [run.config.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            named = ", ".join(str(run.folder) for run in runs)
            raise PidistillError(f"{named} are runs of one configuration and seed; name one")
        method = build_method(config, teacher, None if config.data is None else data[config.data])
        shown = (
            run.folder.name if names.count(run.folder.name) == 1 else str(run.folder)
            for run in runs
        )
        entries.append(
            Entry(
                f"{config.method.name} ({', '.join(shown)})",
                runs,
                method.needs,
                method.student_evaluations + method.target_evaluations,
            )
        )
    return entries
