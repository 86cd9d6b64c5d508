"""Measuring the runs of a plan: the same noise, teacher's solution and reference for all."""

import functools
from pathlib import Path
from typing import Any

from pidistill import __version__
from pidistill.comparison.plan import Configuration, Plan
from pidistill.comparison.runs import progress_of
from pidistill.comparison.table import METRICS, Comparison, Row, Spread
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation import evaluate
from pidistill.evaluation.choice import num_logits
from pidistill.evaluation.features import FeatureNetwork, features_for, load_features
from pidistill.evaluation.reference import Reference, read_reference
from pidistill.files import read_json, sha256_of, write_json
from pidistill.methods import method_class
from pidistill.model_folder import load_student
from pidistill.noise import device_of
from pidistill.progress import Show, no_progress
from pidistill.storage import tensors_sha256, weights_sha256
from pidistill.students.base import Student
from pidistill.teachers.fingerprint import teacher_fingerprint

MEASURED_FILE = "comparison.json"
"""In a run folder: what comparisons measured of it, by the hash of what was measured and how."""

ByNFE = dict[int, dict[str, float]]
"""The metrics of a student, by NFE and name."""


class Measurement:
    """Measures the teacher and the runs of a plan on the same terms."""

    def __init__(self, plan: Plan, store: str | Path, progress: Show = no_progress) -> None:
        """Measure the teacher, on its device, before anything is trained.

        Samples are kept in the folder `store`, so that the teacher is solved once for all runs.
        Raises `PidistillError` when the reference is missing, damaged or holds other samples.
        """
        self.plan, self.store, self.progress = plan, Path(store), progress
        self.reference, identity = _read_reference(plan.reference)
        self.features: str | FeatureNetwork = "auto"
        if plan.features != "auto":
            self.features = load_features(plan.features)
        self._terms = [
            teacher_fingerprint(plan.teacher),
            identity,
            plan.num_samples,
            plan.evaluation_seed,
            __version__,
            *([] if isinstance(self.features, str) else [self.features.identity]),
        ]
        self.teacher = self._evaluate(plan.teacher, progress=progress)

    def comparison(self, plan: Plan, failures: dict[Path, str]) -> Comparison:
        """Measure all runs of `plan`, on the terms of the plan that was given first.

        Those that failed are left out: `failures` has their errors, by folder.

        What was measured of the same weights on the same terms before is read from the run folder.
        A run that cannot be measured, say since its samples are not finite, is a failure.
        """
        measured: dict[Path, ByNFE] = {}
        failures = dict(failures)
        runs = plan.runs()
        with self.progress("measuring", len(runs), "runs") as advance:
            for _, run in runs:
                if run.folder not in failures:
                    try:
                        measured[run.folder] = self._measure(run.folder, plan.evaluations)
                    except PidistillError as error:
                        failures[run.folder] = str(error)
                advance(1)
        rows = {
            section.title: [_row(c, measured, failures) for c in section.configurations]
            for section in plan.sections
        }
        return Comparison(plan, self.teacher, rows)

    def first_metrics(self, folder: Path) -> dict[str, float]:
        """The metrics of the run in `folder` at the smallest NFE.

        Raises `PidistillError` if it cannot be measured.
        """
        (metrics,) = self._measure(folder, [min(self.plan.evaluations)]).values()
        return metrics

    @functools.cached_property
    def _knows_classes(self) -> bool:
        """Whether the features come with a classifier of the teacher's classes."""
        teacher, network = self.plan.teacher, self.features
        if teacher.num_classes == 0 or teacher.decoder is not None:
            return False
        shape, name = teacher.sample_shape, self.plan.reference
        found = network if isinstance(network, FeatureNetwork) else features_for(shape, name)
        return found is not None and num_logits(found, shape) == teacher.num_classes

    def _measure(self, folder: Path, evaluations: list[int]) -> ByNFE:
        student = load_student(folder, device=device_of(self.plan.teacher))
        file = folder / MEASURED_FILE
        kept: dict[str, Any] = read_json(file) if file.is_file() else {}
        weights = weights_sha256(student)
        results = {}
        for steps in [k for k in evaluations if student.takes(k)] or [student.num_steps]:
            key = sha256_of([weights, steps, *self._terms])
            if key not in kept:
                metrics = self._evaluate(student, steps=steps, teacher=self.plan.teacher)
                kept[key] = {name: metrics[name] for name in METRICS if name in metrics}
                write_json(file, kept)
            results[steps] = kept[key]
        return results

    def _evaluate(
        self,
        model: Student | Denoiser,
        *,
        steps: int | None = None,
        teacher: Denoiser | None = None,
        progress: Show = no_progress,
    ) -> dict[str, Any]:
        """The metrics of a model on the terms of the plan; its error, if there is a teacher."""
        metrics = [*(["fid"] if self.reference else []), *(["error"] if teacher else [])]
        if self._knows_classes:
            metrics.append("label-agreement")
        return evaluate(
            model,
            self.reference,
            num=self.plan.num_samples,
            seed=self.plan.evaluation_seed,
            teacher=teacher,
            steps=steps,
            metrics=metrics,
            features=self.features,
            num_error=self.plan.num_samples,
            store=self.store,
            progress=progress,
        )


def _row(
    configuration: Configuration, measured: dict[Path, ByNFE], failures: dict[Path, str]
) -> Row:
    """Sum up the runs of a configuration."""
    config, runs = configuration.config, configuration.runs
    succeeded = [run.folder for run in runs if run.folder in measured]
    found = [measured[folder] for folder in succeeded]
    spent = [progress_of(folder) for folder in succeeded]
    return Row(
        name=configuration.name,
        method=config.method.name,
        identity=configuration.identity,
        folders=[run.folder for run in runs],
        seeds=[run.config.seed for run in runs],
        needs=method_class(config.method.name).needs,
        steps=spent[0]["step"] if spent else None,
        images=spent[0]["step"] * config.batch_size if spent else None,
        rate=configuration.rate,
        search=configuration.search,
        metrics={
            steps: {name: Spread.over([one[steps][name] for one in found]) for name in of_first}
            for steps, of_first in (found[0] if found else {}).items()
        },
        teacher_evals=spent[0]["teacher_evals"] if spent else None,
        teacher_backwards=spent[0].get("teacher_backwards", 0) if spent else None,
        train_seconds=[progress["seconds"] for progress in spent] or None,
        failures={r.config.seed: failures[r.folder] for r in runs if r.folder in failures} or None,
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
