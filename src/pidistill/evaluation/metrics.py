"""The metrics by name: their requirements, and their computation from a pass over the samples."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.evaluation.features.base import FeatureBatch
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.evaluation.neighbours import (
    Nearest,
    nearest_among,
    neighbour_metrics,
    precision_recall,
)
from pidistill.evaluation.reference import Reference, ReferenceFeatures, with_float64
from pidistill.evaluation.sampling import TEACHER_STEPS, Sampler, Subject
from pidistill.evaluation.scores import inception_score, kernel_distance
from pidistill.evaluation.speed import measure_speed
from pidistill.evaluation.streaming import Seen, as_measured, as_pixels
from pidistill.evaluation.trajectory import rms, trajectory_metrics
from pidistill.progress import Show, no_progress
from pidistill.students.labels import labels_for
from pidistill.students.path import PathStudent

QUANTILES = (0.5, 0.9, 0.99)
PATHS = 256
"""Number of paths for errors and residuals along the trajectory."""
PATHS_AT_ONCE = 32
"""Paths that are followed together: every node of theirs is kept."""
NEAREST_NUM = 1000
"""Number of samples whose nearest training images are searched."""

Values = dict[str, Any]
"""Metrics by name, as JSON values."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What metrics are computed from: the samples, the teacher's samples, and a reference."""

    subject: Subject
    teacher: Denoiser | None
    seen: Seen
    of_teacher: Seen | None
    """For the teacher's samples; None if they were not drawn."""
    reference: Reference | None
    in_features: ReferenceFeatures | None
    progress: Show = no_progress

    @property
    def num(self) -> int:
        """Number of samples."""
        return len(self.seen.prints)

    @property
    def device(self) -> torch.device:
        """Where distances are computed; it supports float64."""
        return with_float64(self.subject.device)

    @functools.cached_property
    def neighbours(self) -> tuple[Nearest, Nearest | None]:
        """Nearest neighbours among samples of the subject, and among as many of its teacher."""
        num = min(len(seen.x) for seen in (self.seen, self.of_teacher or self.seen))

        def nearest(seen: Seen) -> Nearest:
            x = as_pixels(seen.x[:num])
            return nearest_among(x, x, self.device)

        return self._of_both(nearest)

    @functools.cached_property
    def training_neighbours(self) -> tuple[Nearest, Nearest | None]:
        """Nearest reference images of samples of the subject, and of its teacher."""
        return self._of_both(
            lambda seen: nearest_among(
                as_pixels(seen.x[:NEAREST_NUM]), self.reference_pixels, self.device
            )
        )

    def _of_both(self, find: Callable[[Seen], Nearest]) -> tuple[Nearest, Nearest | None]:
        return find(self.seen), None if self.of_teacher is None else find(self.of_teacher)

    @functools.cached_property
    def reference_pixels(self) -> Tensor:
        """The reference images (n, c, h, w), rounded like the samples: uint8 if they are images."""
        assert self.reference is not None
        assert self.reference.images is not None
        return as_measured(self.reference.images)

    def of_features(self, formula: Callable[[FeatureBatch], Values]) -> Values:
        """Apply `formula` to the features of the samples, and to the teacher's if available."""
        assert self.seen.features is not None
        values = formula(self.seen.features)
        if self.of_teacher is not None and self.of_teacher.features is not None:
            of_teacher = formula(self.of_teacher.features)
            values |= {f"teacher_{name}": value for name, value in of_teacher.items()}
        return values


def _fid(measured: Measured) -> Values:
    reference, device = measured.in_features, measured.device
    assert reference is not None

    def distance(of: FeatureBatch) -> Values:
        fitted = statistics(of.features, device)
        return {"frechet_distance": frechet_distance(fitted, reference.statistics)}

    values = measured.of_features(distance)
    if reference.reference.images is not None:
        values["reference_split_frechet_distance"] = reference.split_half
    return values


def _kid(measured: Measured) -> Values:
    assert measured.in_features is not None
    features, device = measured.in_features.features, measured.device
    return measured.of_features(
        lambda of: _with_spread("kernel_distance", kernel_distance(of.features, features, device))
    )


def _inception_score(measured: Measured) -> Values:
    def score(of: FeatureBatch) -> Values:
        assert of.logits is not None
        return _with_spread("inception_score", inception_score(of.logits))

    return measured.of_features(score)


def _label_agreement(measured: Measured) -> Values:
    sampler = measured.subject
    assert isinstance(sampler, Sampler)
    model = sampler.model

    def agreement(of: FeatureBatch) -> Values:
        assert of.logits is not None
        labels = labels_for(model, len(of.logits))
        assert labels is not None
        return {"label_agreement": (of.logits.argmax(1) == labels).double().mean().item()}

    return measured.of_features(agreement)


def _with_spread(name: str, estimate: tuple[float, float]) -> Values:
    return {name: estimate[0], f"{name}_spread": estimate[1]}


def _precision_recall(measured: Measured) -> Values:
    assert measured.in_features is not None
    features, device = measured.in_features.features, measured.device
    return measured.of_features(
        lambda of: precision_recall(of.features, features, device)._asdict()
    )


def error_metrics(errors: Tensor) -> Values:
    """RMS distance to the teacher's solution, and quantiles, from distances per sample (n,)."""
    levels = torch.tensor(QUANTILES, dtype=errors.dtype, device=errors.device)
    quantiles = zip(QUANTILES, errors.quantile(levels).tolist(), strict=True)
    return {
        "rms_error": rms(errors),
        "error_num_samples": len(errors),
        "error_quantiles": {str(level): value for level, value in quantiles},
    }


def _error(measured: Measured) -> Values:
    assert measured.of_teacher is not None
    assert measured.of_teacher.errors is not None
    return error_metrics(measured.of_teacher.errors)


def _trajectory(measured: Measured) -> Values:
    sampler, teacher = measured.subject, measured.teacher
    assert isinstance(sampler, Sampler)
    assert isinstance(sampler.model, PathStudent)
    assert teacher is not None
    num = min(measured.num, PATHS)
    with measured.progress("following paths", num, "paths") as advance:
        return trajectory_metrics(
            sampler.model,
            teacher,
            num,
            seed=sampler.seed,
            steps=TEACHER_STEPS,
            batch_size=min(sampler.batch_size, PATHS_AT_ONCE),
            on_batch=advance,
        )


def _diversity(measured: Measured) -> Values:
    return {
        "duplicates": measured.num - len(measured.seen.prints.unique()),
        "nearest_sample": neighbour_metrics(*measured.neighbours),
    }


def _training_images(measured: Measured) -> Values:
    return {"nearest_training_image": neighbour_metrics(*measured.training_neighbours)}


def _speed(measured: Measured) -> Values:
    sampler = measured.subject
    assert isinstance(sampler, Sampler)
    num, models = min(measured.num, sampler.batch_size), 1 if measured.teacher is None else 2
    with measured.progress("timing", models, "models") as advance:
        return measure_speed(sampler, measured.teacher, num, on_model=lambda: advance(1))


class Metric(NamedTuple):
    """Metrics that are selected by one name."""

    values: Callable[[Measured], Values]
    needs: frozenset[str]
    """Keys of `choice.NEEDS`."""
    every_time: bool = True
    """Whether to measure every seed and weight average, or only the first."""


METRICS = {
    "fid": Metric(_fid, frozenset({"features", "reference"})),
    "kid": Metric(_kid, frozenset({"features", "images"})),
    "is": Metric(_inception_score, frozenset({"features", "classes"})),
    "precision-recall": Metric(_precision_recall, frozenset({"features", "images"})),
    "label-agreement": Metric(_label_agreement, frozenset({"features", "labels"})),
    "error": Metric(_error, frozenset({"teacher"})),
    "trajectory": Metric(_trajectory, frozenset({"trajectory"}), every_time=False),
    "diversity": Metric(_diversity, frozenset(), every_time=False),
    "training-images": Metric(_training_images, frozenset({"real images"}), every_time=False),
    "speed": Metric(_speed, frozenset({"model"}), every_time=False),
}


def compute(measured: Measured, names: Collection[str]) -> Values:
    """The metrics `names`, keys of `METRICS`."""
    values: Values = {"num_samples": measured.num}
    if measured.seen.nfe:
        values = {"nfe": measured.seen.nfe, **values, "seed": measured.subject.seed}
    if measured.of_teacher is not None:
        values["teacher_nfe"] = measured.of_teacher.nfe
    for name in names:
        values |= METRICS[name].values(measured)
    return values
