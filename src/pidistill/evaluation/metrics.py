"""The metrics of samples, what each needs of them and of a reference, and their values.

All of them come from one pass: `needs_of` says what to collect, `measure` computes the rest.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pidistill.errors import PidistillError
from pidistill.evaluation.collect import Summary
from pidistill.evaluation.frechet import frechet_distance
from pidistill.evaluation.kernel import kernel_distance
from pidistill.evaluation.neighbours import precision_recall

Values = dict[str, float]


class Metric(NamedTuple):
    """A metric of samples."""

    of_samples: frozenset[str]
    """What it needs collected of the samples: keys of `collect.SINKS`."""
    of_reference: frozenset[str]
    """What it needs collected of a reference; empty where it needs no reference."""
    measure: Callable[[Summary, Summary, torch.device | None], Values]
    """Its values by name, from what was collected of both and where to compute."""


def _frechet(samples: Summary, reference: Summary, device: torch.device | None) -> Values:
    distance = frechet_distance(samples["statistics"], reference["statistics"])
    values = {"frechet_distance": distance}
    if "split_half" in reference:
        values["reference_split_frechet_distance"] = reference["split_half"]
    return values


def _kernel(samples: Summary, reference: Summary, device: torch.device | None) -> Values:
    value, spread = kernel_distance(samples["features"], reference["features"], device=device)
    return {"kernel_distance": value, "kernel_distance_spread": spread}


def _inception_score(samples: Summary, reference: Summary, device: torch.device | None) -> Values:
    scores = samples["class_scores"]
    return {
        "inception_score": scores.mean().item(),
        "inception_score_spread": scores.std(correction=0).item(),
    }


def _precision_recall(samples: Summary, reference: Summary, device: torch.device | None) -> Values:
    precision, recall = precision_recall(samples["features"], reference["features"], device=device)
    return {"precision": precision, "recall": recall}


METRICS = {
    "fid": Metric(frozenset({"statistics"}), frozenset({"statistics"}), _frechet),
    "kid": Metric(frozenset({"features"}), frozenset({"features"}), _kernel),
    "is": Metric(frozenset({"class_scores"}), frozenset(), _inception_score),
    "precision-recall": Metric(frozenset({"features"}), frozenset({"features"}), _precision_recall),
}
"""The metrics by the name that the command line knows them by."""


def needs_of_samples(names: Sequence[str]) -> frozenset[str]:
    """What the metrics of these names need collected of the samples.

    Raises `PidistillError` when there is no metric of a name.
    """
    return frozenset().union(*(metric_named(name).of_samples for name in names))


def needs_of_reference(names: Sequence[str]) -> frozenset[str]:
    """What the metrics of these names need collected of a reference; empty where they need none.

    Raises `PidistillError` when there is no metric of a name.
    """
    return frozenset().union(*(metric_named(name).of_reference for name in names))


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises `PidistillError` when there is none.
    """
    if name not in METRICS:
        raise PidistillError(f"unknown metric {name!r}; expected one of {', '.join(METRICS)}")
    return METRICS[name]


def measure(
    names: Sequence[str],
    samples: Summary,
    reference: Summary,
    *,
    device: torch.device | None = None,
) -> Values:
    """The values of metrics by name, for JSON.

    Args:
        names: Keys of `METRICS`.
        samples: What was collected of the samples, at least `needs_of_samples(names)`.
        reference: What was collected of the reference, at least `needs_of_reference(names)`.
        device: Where to compute; None means the CPU.

    Returns:
        `frechet_distance`, `reference_split_frechet_distance`, `kernel_distance`,
        `inception_score`, `precision`, `recall`; spreads over subsets or parts end in `_spread`.

    Raises:
        PidistillError: There are too few samples, or the two are of different networks.
    """
    values: Values = {}
    for name in names:
        values.update(metric_named(name).measure(samples, reference, device))
    return values
