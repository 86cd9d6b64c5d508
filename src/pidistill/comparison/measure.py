"""Measuring the runs of a plan: the same noise, teacher's solution and reference for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pidistill import __version__
from pidistill.comparison.plan import Configuration, Plan
from pidistill.comparison.table import METRICS, Comparison, Row, Spread
from pidistill.comparison.train import progress_of
from pidistill.denoiser import Denoiser
from pidistill.evaluation.reference import read_reference
from pidistill.files import read_json, sha256_of, write_json
from pidistill.model_folder import load_student
from pidistill.noise import device_of
from pidistill.storage import read_tensors, tensors_sha256, weights_sha256, write_tensors
from pidistill.students.base import Student
from pidistill.teachers.fingerprint import teacher_fingerprint

MEASURED_FILE = "comparison.json"
"""In a run folder: what comparisons measured of it, by the hash of what was measured and how."""


def measure_teacher(
    plan: Plan, store: str | Path, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """The metrics of the teacher of `plan`, on its device.

    To be called before the training: a reference that is missing or of another shape is an error.

    Args:
        plan: The plan.
        store: Folder where samples are kept, so that the teacher is solved once for all runs.
        say: Called with one-line notes.

    Returns:
        `nfe`; with a reference `frechet_distance`, and `reference_split_frechet_distance` where the
        reference holds images.
    """
    return _evaluate(plan.teacher, plan, Path(store), say=say)


def measure_runs(
    plan: Plan,
    teacher: dict[str, Any],
    store: str | Path,
    failures: dict[Path, str],
    on_run: Callable[[int], None] = lambda count: None,
) -> Comparison:
    """Measure all runs of `plan` that succeeded.

    What was measured of the same weights on the same terms before is read from the run's folder.

    Args:
        plan: The plan.
        teacher: What `measure_teacher` returned.
        store: Folder where samples are kept.
        failures: Errors of the runs that failed, by folder.
        on_run: Called with 1 after every run.
    """
    terms = [
        teacher_fingerprint(plan.teacher),
        _identity_of_reference(plan.reference),
        plan.num_samples,
        plan.evaluation_seed,
        __version__,
    ]
    measured: dict[Path, dict[int, dict[str, float]]] = {}
    for _, run in plan.runs():
        if run.folder not in failures:
            measured[run.folder] = _measure_run(run.folder, plan, terms, Path(store))
        on_run(1)
    rows = {
        section.title: [_row(c, measured, failures) for c in section.configurations]
        for section in plan.sections
    }
    return Comparison(plan, teacher, rows)


def _measure_run(
    folder: Path, plan: Plan, terms: list[Any], store: Path
) -> dict[int, dict[str, float]]:
    """The metrics of the student in `folder`, by NFE."""
    student = load_student(folder, device=device_of(plan.teacher))
    file = folder / MEASURED_FILE
    kept: dict[str, Any] = read_json(file) if file.is_file() else {}
    weights = weights_sha256(student)
    results = {}
    for steps in [k for k in plan.evaluations if student.takes(k)] or [student.num_steps]:
        key = sha256_of([weights, steps, *terms])
        if key not in kept:
            metrics = _evaluate(student, plan, store, steps=steps)
            kept[key] = {name: metrics[name] for name in METRICS if name in metrics}
            write_json(file, kept)
        results[steps] = kept[key]
    return results


def _row(
    configuration: Configuration,
    measured: dict[Path, dict[int, dict[str, float]]],
    failures: dict[Path, str],
) -> Row:
    """Sum up the runs of a configuration; `measured` has those that succeeded."""
    folders = [run.folder for run in configuration.runs if run.folder in measured]
    of_seeds = [measured[folder] for folder in folders]
    spent = [progress_of(folder) for folder in folders]
    metrics = {
        steps: {name: Spread.over([one[steps][name] for one in of_seeds]) for name in of_first}
        for steps, of_first in (of_seeds[0] if of_seeds else {}).items()
    }
    return Row(
        configuration,
        metrics,
        [progress["seconds"] for progress in spent],
        spent[0]["teacher_evals"] if spent else None,
        {r.config.seed: failures[r.folder] for r in configuration.runs if r.folder in failures},
    )


def _identity_of_reference(spec: str | None) -> str | None:
    """A hash of what the reference holds, whatever its name."""
    if spec is None:
        return None
    data = read_reference(spec)
    if data.statistics is not None:
        return tensors_sha256(data.statistics._asdict())
    assert data.images is not None
    return tensors_sha256({"images": data.images})


def _evaluate(
    model: Student | Denoiser,
    plan: Plan,
    store: Path,
    *,
    steps: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The metrics of a model on the terms of `plan`: the one call of the evaluation."""
    from pidistill.errors import PidistillError
    from pidistill.evaluation.evaluate import error_metrics, reference_statistics
    from pidistill.evaluation.sampling import teacher_samples
    from pidistill.ode import Solution

    reference = None
    if plan.reference is not None:
        images = read_reference(plan.reference).images
        if images is None or tuple(images.shape[1:]) != plan.teacher.sample_shape:
            raise PidistillError(f"reference {plan.reference} does not fit the teacher's samples")
        reference = reference_statistics(images, plan.reference)
        if reference is None:
            say("no Frechet distances: no bundled classifier suits these samples")
    facts = [teacher_fingerprint(plan.teacher), plan.num_samples, plan.evaluation_seed, __version__]
    file = store / f"teacher-{sha256_of(facts)[:16]}.safetensors"
    if file.is_file():
        kept = read_tensors(file)
        solved = Solution(kept["x"].to(device_of(plan.teacher)), int(kept["nfe"]))
    else:
        solved = teacher_samples(plan.teacher, plan.num_samples, seed=plan.evaluation_seed)
        store.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {"x": solved.x, "nfe": torch.tensor(solved.nfe)})
    if not isinstance(model, Student):
        metrics: dict[str, Any] = {"nfe": solved.nfe}
        if reference is not None:
            metrics["frechet_distance"] = reference.distance(solved.x)
            metrics["reference_split_frechet_distance"] = reference.split_half
        return metrics
    drawn = model.generate(plan.num_samples, seed=plan.evaluation_seed, steps=steps)
    metrics = {"nfe": drawn.nfe, **error_metrics(drawn.x, solved.x)}
    if reference is not None:
        metrics["frechet_distance"] = reference.distance(drawn.x)
    return metrics
