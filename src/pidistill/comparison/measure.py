"""Measuring the runs of a plan: the same noise, teacher's solution and reference for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidistill import __version__
from pidistill.comparison.plan import Configuration, Plan
from pidistill.comparison.table import METRICS, Comparison, Row, Spread
from pidistill.comparison.train import progress_of
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation import evaluate
from pidistill.evaluation.reference import Progress, Reference, read_reference
from pidistill.files import read_json, sha256_of, write_json
from pidistill.model_folder import load_student
from pidistill.noise import device_of
from pidistill.storage import tensors_sha256, weights_sha256
from pidistill.students.base import Student
from pidistill.teachers.fingerprint import teacher_fingerprint

MEASURED_FILE = "comparison.json"
"""In a run folder: what comparisons measured of it, by the hash of what was measured and how."""


class Measurement:
    """Measures the teacher and the runs of a plan on the same terms."""

    def __init__(self, plan: Plan, store: str | Path, progress: Progress | None = None) -> None:
        """Measure the teacher, on its device.

        To be done before the training: a reference that is missing or does not fit is an error.

        Args:
            plan: The plan.
            store: Folder where samples are kept, so that the teacher is solved once for all runs.
            progress: Shows progress (see `evaluate`).

        Raises:
            PidistillError: The reference is missing or damaged, or holds other samples.
        """
        self.plan, self.store = plan, Path(store)
        self.reference, identity = _read_reference(plan.reference)
        self._terms = [
            teacher_fingerprint(plan.teacher),
            identity,
            plan.num_samples,
            plan.evaluation_seed,
            __version__,
        ]
        self.teacher = self._evaluate(plan.teacher, progress=progress)

    def comparison(
        self, failures: dict[Path, str], on_run: Callable[[int], None] = lambda count: None
    ) -> Comparison:
        """Measure all runs.

        What was measured of the same weights on the same terms before is read from the run folder.
        A run that cannot be measured, say since its samples are not finite, is a failure.

        Args:
            failures: Errors of the runs that failed, by folder; they are left out.
            on_run: Called with 1 after every run.
        """
        measured: dict[Path, dict[int, dict[str, float]]] = {}
        failures = dict(failures)
        for _, run in self.plan.runs():
            if run.folder not in failures:
                try:
                    measured[run.folder] = self._measure(run.folder)
                except PidistillError as error:
                    failures[run.folder] = str(error)
            on_run(1)
        rows = {
            section.title: [_row(c, measured, failures) for c in section.configurations]
            for section in self.plan.sections
        }
        return Comparison(self.plan, self.teacher, rows)

    def _measure(self, folder: Path) -> dict[int, dict[str, float]]:
        """The metrics of the student in `folder`, by NFE."""
        student = load_student(folder, device=device_of(self.plan.teacher))
        file = folder / MEASURED_FILE
        kept: dict[str, Any] = read_json(file) if file.is_file() else {}
        weights = weights_sha256(student)
        results = {}
        for steps in [k for k in self.plan.evaluations if student.takes(k)] or [student.num_steps]:
            key = sha256_of([weights, steps, *self._terms])
            if key not in kept:
                metrics = self._evaluate(student, steps)
                kept[key] = {name: metrics[name] for name in METRICS if name in metrics}
                write_json(file, kept)
            results[steps] = kept[key]
        return results

    def _evaluate(
        self,
        model: Student | Denoiser,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The metrics of a model on the terms of the plan: the one call of the evaluation."""
        metrics = [] if self.reference is None else ["fid"]
        teacher = None
        if isinstance(model, Student):
            metrics.append("error")
            teacher = self.plan.teacher
        return evaluate(
            model,
            self.reference,
            num=self.plan.num_samples,
            seed=self.plan.evaluation_seed,
            teacher=teacher,
            steps=steps,
            metrics=metrics,
            num_error=self.plan.num_samples,
            store=self.store,
            progress=progress,
        )


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


def _read_reference(spec: str | None) -> tuple[Reference | None, str | None]:
    """The reference, read once for all runs, and a hash of what it holds, whatever its name."""
    if spec is None:
        return None, None
    found = read_reference(spec)
    if found.images is None:
        assert found.statistics is not None
        return found, tensors_sha256(found.statistics._asdict())
    return found, tensors_sha256({"images": found.images})
