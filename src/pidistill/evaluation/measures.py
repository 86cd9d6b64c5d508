"""The metrics of a subject by name: what there are, and what each needs."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.evaluation.collect import Summary
from pidistill.evaluation.diversity import Nearest, nearest_among, neighbour_metrics
from pidistill.evaluation.features import FeatureNetwork
from pidistill.evaluation.metrics import METRICS, measure
from pidistill.evaluation.protocol import Seen, Terms, look_at_samples, look_at_teacher
from pidistill.evaluation.reference import ReferenceData
from pidistill.evaluation.sampling import TEACHER_STEPS, as_measured
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.trajectory import rms, trajectory_metrics
from pidistill.noise import device_of
from pidistill.students.trajectory import TrajectoryStudent

QUANTILES = (0.5, 0.9, 0.99)
PATHS = 256
"""Paths that errors and residuals along the way are measured on."""
NEAREST_NUM = 1000
"""Samples whose nearest training images are looked for."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was seen of a subject under one seed: what metrics are made of."""

    subject: Subject
    terms: Terms
    seed: int
    seen: Seen
    """Of the subject's samples."""
    of_teacher: Seen | None
    """Of its teacher's; None where they were not looked at."""
    reference: Summary
    """What was collected of the reference; empty without one."""
    images: Tensor | None = None
    """The reference's images (n, c, h, w), for nearest ones; None where there are none."""
    batch_size: int = 256
    """Samples evaluated at once."""

    @property
    def device(self) -> torch.device:
        """Where distances are computed; on the CPU where the accelerator has no float64."""
        for module in (self.subject.student, self.terms.network):
            if module is not None and device_of(module).type != "mps":
                return device_of(module)
        return torch.device("cpu")

    @functools.cached_property
    def neighbours(self) -> tuple[Nearest, Nearest | None]:
        """Nearest neighbours among as many samples of the subject, and of its teacher."""
        if self.of_teacher is None:
            return nearest_among(self.seen.x, self.seen.x, self.device), None
        num = min(len(self.seen.x), len(self.of_teacher.x))
        x, teacher_x = self.seen.x[:num], self.of_teacher.x[:num]
        return (
            nearest_among(x, x, self.device),
            nearest_among(teacher_x, teacher_x, self.device),
        )

    @functools.cached_property
    def training_neighbours(self) -> tuple[Nearest, Nearest | None]:
        """The nearest reference images to samples of the subject, and of its teacher."""
        assert self.images is not None
        images = as_measured(self.images)
        nearest = nearest_among(self.seen.x[:NEAREST_NUM], images, self.device)
        if self.of_teacher is None:
            return nearest, None
        x = self.of_teacher.x[:NEAREST_NUM]
        return nearest, nearest_among(x, images, self.device)


def _features(name: str, evidence: Evidence) -> dict[str, Any]:
    """A metric of `metrics.METRICS`, of the subject and, where it was looked at, of its teacher."""
    device = evidence.device
    values = measure([name], evidence.seen.summary, evidence.reference, device=device)
    if evidence.of_teacher is None:
        return values
    summary = evidence.of_teacher.summary
    of_teacher = measure([name], summary, evidence.reference, device=device)
    own = {key: value for key, value in of_teacher.items() if not key.startswith("reference_")}
    return {**values, **{f"teacher_{key}": value for key, value in own.items()}}


def error_values(errors: Tensor) -> dict[str, Any]:
    """RMS distance to the teacher's solution, and quantiles, from those of the samples (n,)."""
    levels = torch.tensor(QUANTILES, dtype=errors.dtype, device=errors.device)
    return {
        "rms_error": rms(errors),
        "error_num_samples": len(errors),
        "error_quantiles": {
            str(level): value
            for level, value in zip(QUANTILES, errors.quantile(levels).tolist(), strict=True)
        },
    }


def _error(evidence: Evidence) -> dict[str, Any]:
    assert evidence.of_teacher is not None
    assert evidence.of_teacher.errors is not None
    return error_values(evidence.of_teacher.errors)


def _trajectory(evidence: Evidence) -> dict[str, Any]:
    student, teacher = evidence.subject.student, evidence.subject.teacher
    assert isinstance(student, TrajectoryStudent)
    assert teacher is not None
    return trajectory_metrics(
        student,
        teacher,
        min(evidence.terms.num, PATHS),
        seed=evidence.seed,
        steps=TEACHER_STEPS,
        batch_size=evidence.batch_size,
    )


def _diversity(evidence: Evidence) -> dict[str, Any]:
    values = neighbour_metrics(*evidence.neighbours)
    return {"duplicates": evidence.seen.duplicates, "nearest_sample": values}


def _training_images(evidence: Evidence) -> dict[str, Any]:
    return {"nearest_training_image": neighbour_metrics(*evidence.training_neighbours)}


def _speed(evidence: Evidence) -> dict[str, Any]:
    assert evidence.subject.speed is not None
    return evidence.subject.speed(min(evidence.terms.num, evidence.batch_size))


NEEDS = {
    "features": "a feature network for samples of this shape; choose one with --features",
    "reference": "a --reference",
    "images": "a --reference that holds images",
    "teacher": "a run folder whose teacher is at hand",
    "path": "a run of the method pid whose teacher is at hand",
    "model": "a run folder or a teacher, which can be timed",
}
"""What a metric may need, for the error that says so."""


class Measure(NamedTuple):
    """Metrics that are chosen by one name."""

    needs: frozenset[str]
    """Keys of `NEEDS`."""
    values: Callable[[Evidence], dict[str, Any]]
    """Their values by name, as JSON values."""
    of_all: bool
    """Whether every seed and every average of the weights is measured, or the first one alone."""


def _measure_of_features(name: str) -> Measure:
    of_reference = METRICS[name].of_reference
    needs = {"features"}
    if of_reference:
        needs.add("reference" if of_reference <= {"statistics"} else "images")
    return Measure(frozenset(needs), functools.partial(_features, name), of_all=True)


MEASURES = {
    **{name: _measure_of_features(name) for name in METRICS},
    "error": Measure(frozenset({"teacher"}), _error, of_all=True),
    "trajectory": Measure(frozenset({"path"}), _trajectory, of_all=False),
    "diversity": Measure(frozenset(), _diversity, of_all=False),
    "training-images": Measure(frozenset({"images"}), _training_images, of_all=False),
    "speed": Measure(frozenset({"model"}), _speed, of_all=False),
}
DEFAULT = ("fid", "error", "trajectory", "diversity", "training-images", "speed")
"""What is measured where nothing is named and it can be."""


def what_is_there(
    subject: Subject, network: FeatureNetwork | None, reference: ReferenceData | None
) -> frozenset[str]:
    """The keys of `NEEDS` that are met."""
    path = isinstance(subject.student, TrajectoryStudent) and subject.teacher is not None
    met = {
        "features": network is not None,
        "reference": reference is not None,
        "images": reference is not None
        and reference.images is not None
        and not reference.are_drawn,
        "teacher": subject.teacher_sampler is not None,
        "path": path,
        "model": subject.speed is not None,
    }
    return frozenset(need for need, is_met in met.items() if is_met)


def choose_measures(asked: Sequence[str] | None, there: Collection[str]) -> tuple[str, ...]:
    """The measures to take: those asked for, or by default those that can be taken.

    Args:
        asked: Keys of `MEASURES`; None means `DEFAULT`.
        there: The needs that are met.

    Raises:
        PidistillError: One that was asked for is not known, or needs what is not there.
    """
    if asked is None:
        return tuple(name for name in DEFAULT if MEASURES[name].needs <= set(there))
    for name in asked:
        if name not in MEASURES:
            raise PidistillError(f"unknown metric {name!r}; expected some of {', '.join(MEASURES)}")
        for need in sorted(MEASURES[name].needs - set(there)):
            raise PidistillError(f"metric {name!r} needs {NEEDS[need]}")
    return tuple(dict.fromkeys(asked))


def gather_evidence(
    subject: Subject,
    terms: Terms,
    seed: int,
    names: Collection[str],
    *,
    reference: Summary,
    images: Tensor | None = None,
    batch_size: int = 256,
) -> Evidence | None:
    """Look at a subject, and at its teacher where an error is asked for.

    Args:
        subject: What is measured.
        terms: How.
        seed: The seed.
        names: Keys of `MEASURES`.
        reference: What was collected of the reference (see `collect_reference`).
        images: The reference's images (n, c, h, w), or None.
        batch_size: Samples evaluated at once.

    Returns:
        The evidence in the main process, None in the others.
    """
    seen = look_at_samples(subject, terms, seed)
    of_teacher = look_at_teacher(subject, terms, seed) if "error" in names else None
    if seen is None:
        return None
    return Evidence(subject, terms, seed, seen, of_teacher, reference, images, batch_size)


def metrics_of(evidence: Evidence, names: Collection[str]) -> dict[str, Any]:
    """The metrics of these `names`, keys of `MEASURES`, as JSON values."""
    metrics: dict[str, Any] = {"num_samples": evidence.terms.num}
    if evidence.seen.nfe:
        metrics = {"nfe": evidence.seen.nfe, **metrics, "seed": evidence.seed}
    if evidence.of_teacher is not None:
        metrics["teacher_nfe"] = evidence.of_teacher.nfe
    for name in names:
        metrics.update(MEASURES[name].values(evidence))
    return metrics
