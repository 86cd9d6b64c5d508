"""Several averages of the weights and several seeds, measured in one call."""

import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pidistill.evaluation.collect import Summary
from pidistill.evaluation.measures import MEASURES, Evidence, gather_evidence, metrics_of
from pidistill.evaluation.protocol import Terms, samples_to_draw, stored_samples
from pidistill.evaluation.sampling import BlockFolder
from pidistill.evaluation.subject import Subject

MEASUREMENTS = "measurements"
"""In metrics: every measurement, where there were several."""
OVER_SEEDS = "over_seeds"
"""In metrics: what several seeds say together."""
FACTS = {"nfe", "num_samples", "error_num_samples", "seed", "teacher_nfe", "speed_batch_size"}
"""Numbers that are no metrics."""


class Swept(NamedTuple):
    """What a sweep leaves behind, in the main process."""

    metrics: dict[str, Any]
    """As JSON values (see `sweep`)."""
    first: Evidence
    """Of the first subject and seed, for pictures."""
    stored: list[BlockFolder]
    """Samples that were kept while they were measured."""


def sweep(
    subjects: Iterable[tuple[str | None, Subject]],
    terms: Terms,
    seeds: Sequence[int],
    names: Collection[str],
    *,
    reference: Summary,
    images: Tensor | None = None,
    batch_size: int = 256,
) -> Swept | None:
    """Measure every subject under every seed.

    Args:
        subjects: What is measured: averages of the weights of one run, with the names of their
            files, or one subject and None.
        terms: How.
        seeds: Seeds of the noise.
        names: Keys of `MEASURES`; those that are not `of_all` are of the first measurement only.
        reference: What was collected of the reference.
        images: The reference's images, or None.
        batch_size: Samples evaluated at once.

    Returns:
        In the main process: the metrics of the first subject under the first seed; beside them,
        where there are more, all `measurements`, each with its `weights` and `seed`, and for
        several seeds `over_seeds`: least, mean, greatest and standard deviation of each metric, by
        weights. None in the other processes.
    """
    first: Evidence | None = None
    metrics: dict[str, Any] = {}
    measurements = []
    stored = []
    for weights, subject in subjects:
        for seed in seeds:
            chosen = [name for name in names if first is None or MEASURES[name].of_all]
            evidence = gather_evidence(
                subject,
                terms,
                seed,
                names,
                reference=reference,
                images=images,
                batch_size=batch_size,
            )
            if evidence is None:
                continue
            stored += stored_samples(subject, terms, seed)
            values = metrics_of(evidence, chosen)
            if first is None:
                first, metrics = evidence, values
            measurements.append({**({} if weights is None else {"weights": weights}), **values})
    if first is None:
        return None
    if len(measurements) > 1:
        shared = [name for name, value in measurements[-1].items() if not isinstance(value, dict)]
        measurements = [{name: one[name] for name in shared} for one in measurements]
        metrics = {**metrics, MEASUREMENTS: measurements}
    if len(seeds) > 1:
        metrics[OVER_SEEDS] = over_seeds(measurements)
    return Swept(metrics, first, stored)


def over_seeds(measurements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the seeds of each subject say together, in the order of the subjects."""
    groups: dict[str | None, list[dict[str, Any]]] = {}
    for one in measurements:
        groups.setdefault(one.get("weights"), []).append(one)
    summaries = []
    for weights, group in groups.items():
        summary: dict[str, Any] = {} if weights is None else {"weights": weights}
        for name in group[0]:
            if name not in FACTS and isinstance(group[0][name], int | float):
                values = [one[name] for one in group]
                summary[name] = {
                    "min": min(values),
                    "mean": statistics.fmean(values),
                    "max": max(values),
                    "spread": statistics.stdev(values),
                }
        summaries.append(summary)
    return summaries


def all_samples(terms: Terms, names: Collection[str], measurements: int) -> int:
    """How many samples this process draws over all measurements, for its progress bar."""
    own = samples_to_draw(terms.num, terms.processes)
    if "error" in names:
        own += samples_to_draw(min(terms.num, terms.error_num), terms.processes)
    return own * measurements
