"""Which metrics are computed: those that are asked for, or all that fit what is there."""

from collections.abc import Callable, Sequence

import torch

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import FeatureNetwork
from pidistill.evaluation.metrics import METRICS
from pidistill.evaluation.reference import Reference
from pidistill.evaluation.sampling import Sampler, Subject
from pidistill.evaluation.scores import SPLITS
from pidistill.noise import device_of
from pidistill.students.path import PathStudent

DEFAULT = ("fid", "label-agreement", "error", "trajectory", "diversity", "training-images", "speed")
"""Metrics computed by default, if their requirements are met."""

ENOUGH_FOR_IS = 5000
"""Published scores are of 50,000 samples."""

NEEDS = {
    "features": "a feature network for samples of this shape; choose features",
    "classes": "features of a classifier, such as inception",
    "labels": "a class-conditional model, and features of a classifier of its classes",
    "reference": "a reference",
    "images": "a reference that holds images",
    "real images": "a reference with images that were not drawn by a model",
    "teacher": "a teacher to compare with: a run folder whose teacher is available, or teacher",
    "trajectory": "a student of the method pid, pid-map or boot, and its teacher",
    "model": "a model to time, but these are samples",
}
"""What a metric may need, worded for an error message."""


def choose_metrics(
    asked: Sequence[str] | None,
    subject: Subject,
    teacher: Denoiser | None,
    reference: Reference | None,
    network: FeatureNetwork | None,
) -> tuple[str, ...]:
    """The metrics to compute: those in `asked`, or by default all those in `DEFAULT` that can be.

    Raises `PidistillError` if a metric in `asked` is unknown, or what it needs is missing.
    """
    is_model = isinstance(subject, Sampler)
    is_path = isinstance(subject, Sampler) and isinstance(subject.model, PathStudent)
    is_drawn = reference is not None and reference.teacher is not None
    logits = 0 if network is None else num_logits(network, subject.image_shape)
    num_classes = subject.model.num_classes if isinstance(subject, Sampler) else 0
    has_images = reference is not None and (reference.images is not None or is_drawn)
    met = {
        "features": network is not None,
        "classes": logits > 0,
        "labels": num_classes > 0 and logits == num_classes,
        "reference": reference is not None,
        "images": has_images,
        "real images": has_images and not is_drawn,
        "teacher": is_model and teacher is not None,
        "trajectory": is_path and teacher is not None,
        "model": is_model,
    }
    if asked is None:
        return tuple(name for name in DEFAULT if all(met[need] for need in METRICS[name].needs))
    for name in asked:
        if name not in METRICS:
            raise PidistillError(f"unknown metric {name!r}; expected any of {', '.join(METRICS)}")
        for need in sorted(METRICS[name].needs):
            if not met[need]:
                raise PidistillError(f"the metric {name!r} needs {NEEDS[need]}")
    return tuple(dict.fromkeys(asked))


def needed_network(
    network: FeatureNetwork | None, names: Sequence[str], num: int, say: Callable[[str], None]
) -> FeatureNetwork | None:
    """The network if one of the metrics `names` needs it; says so if `num` samples are few for it.

    Raises `PidistillError` if there are too few samples for an Inception Score.
    """
    if network is None or not any("features" in METRICS[name].needs for name in names):
        return None
    if "fid" in names and num <= network.num_features:
        say(
            f"{num} samples are few for a Frechet distance of {network.num_features} features: it "
            "comes out too large, and compares only with others of as many samples"
        )
    if "is" in names and num < 2 * SPLITS:
        raise PidistillError(
            f"an Inception Score of {num} samples means nothing; expected at least {2 * SPLITS}, "
            f"two in each of its {SPLITS} parts"
        )
    if "is" in names and num < ENOUGH_FOR_IS:
        say(f"{num} samples are few for an Inception Score, which comes out too small")
    return network


@torch.no_grad()
def num_logits(network: FeatureNetwork, image_shape: tuple[int, ...]) -> int:
    """How many classes the network tells apart; 0 if it is not a classifier."""
    logits = network(torch.zeros(1, *image_shape, device=device_of(network))).logits
    return 0 if logits is None else logits.shape[1]
