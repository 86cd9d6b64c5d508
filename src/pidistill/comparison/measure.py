"""What every run of a comparison is measured with: the same noise, solution and reference."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pidistill import __version__
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.evaluate import error_metrics, reference_statistics
from pidistill.evaluation.reference import Reference, read_reference
from pidistill.evaluation.sampling import teacher_samples
from pidistill.files import read_json, sha256_of, write_json
from pidistill.model_folder import load_student
from pidistill.noise import device_of
from pidistill.ode import Solution
from pidistill.storage import read_tensors, tensors_sha256, weights_sha256, write_tensors
from pidistill.students.base import Student
from pidistill.teachers.fingerprint import teacher_fingerprint

MEASURED_FILE = "comparison.json"
"""In a run folder: what comparisons measured of it, by the hash of what was measured and how."""


class Terms:
    """What all runs have in common when they are measured; made when it is first asked for."""

    def __init__(
        self,
        teacher: Denoiser,
        *,
        reference: str | None,
        num: int,
        seed: int,
        cache: Path | None,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> None:
        """State the terms.

        Args:
            teacher: The teacher of the runs, on the device to compute on.
            reference: Data spec or `.npz` file for Frechet distances; None leaves them out.
            num: Samples.
            seed: Seed of their noise.
            cache: Folder where the teacher's samples are kept; None keeps them in memory only.
            on_batch: Called with the size of every batch that is drawn, by teacher or student.
        """
        self.teacher = teacher
        self.num, self.seed = num, seed
        self.reference_name = reference
        self.cache = cache
        self.on_batch = on_batch
        self.fingerprint = teacher_fingerprint(teacher)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The reference; None where none is named, or no feature network suits its samples."""
        if self.reference_name is None:
            return None
        x = read_reference(self.reference_name).images
        if x is None:
            raise PidistillError(
                f"reference {self.reference_name} holds statistics only; a comparison takes images "
                "or samples"
            )
        if tuple(x.shape[1:]) != self.teacher.sample_shape:
            raise PidistillError(
                f"reference {self.reference_name} holds samples of shape {tuple(x.shape[1:])}; "
                f"the teacher draws {self.teacher.sample_shape}"
            )
        return reference_statistics(x, self.reference_name)

    @functools.cached_property
    def reference_identity(self) -> str | None:
        """A hash of what the reference is, whatever its name; None where there is none."""
        if self.reference is None:
            return None
        statistics = tensors_sha256(self.reference.summary["statistics"]._asdict())
        return sha256_of([self.reference.network.identity, statistics])

    @functools.cached_property
    def solved(self) -> Solution:
        """The teacher's samples."""
        file = None
        if self.cache is not None:
            key = sha256_of([self.fingerprint, self.num, self.seed, __version__])
            file = self.cache / f"teacher-{key[:16]}.safetensors"
            if file.is_file():
                kept = read_tensors(file)
                return Solution(kept["x"].to(device_of(self.teacher)), int(kept["nfe"]))
        solved = teacher_samples(self.teacher, self.num, seed=self.seed, on_batch=self.on_batch)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, {"x": solved.x, "nfe": torch.tensor(solved.nfe)})
        return solved

    @functools.cached_property
    def of_teacher(self) -> dict[str, Any]:
        """The teacher's own metrics."""
        metrics: dict[str, Any] = {"nfe": self.solved.nfe}
        if self.reference is not None:
            metrics["frechet_distance"] = self.reference.distance(self.solved.x)
            metrics["reference_split_frechet_distance"] = self.reference.split_half
        return metrics

    def of_student(self, student: Student, steps: int) -> dict[str, Any]:
        """The metrics of a student in `steps` evaluations."""
        drawn = student.generate(self.num, seed=self.seed, steps=steps, on_batch=self.on_batch)
        metrics = {"nfe": drawn.nfe, **error_metrics(drawn.x, self.solved.x)}
        if self.reference is not None:
            metrics["frechet_distance"] = self.reference.distance(drawn.x)
        return metrics


def measure(folder: Path, terms: Terms, evaluations: list[int]) -> dict[int, dict[str, Any]]:
    """The metrics of the student in `folder`, by evaluations a sample.

    Numbers of evaluations that the student does not take are left out; one that takes none of them
    is measured with as many as it was trained for. What was measured of the same weights on the
    same terms before is read from the folder.
    """
    student = load_student(folder, device=device_of(terms.teacher))
    file = folder / MEASURED_FILE
    kept: dict[str, Any] = read_json(file) if file.is_file() else {}
    weights = weights_sha256(student)
    facts = [weights, terms.fingerprint, terms.reference_identity, terms.num, terms.seed]
    results = {}
    for steps in [k for k in evaluations if student.takes(k)] or [student.num_steps]:
        key = sha256_of([*facts, steps, __version__])
        if key not in kept:
            kept[key] = terms.of_student(student, steps)
            write_json(file, kept)
        results[steps] = kept[key]
    return results
