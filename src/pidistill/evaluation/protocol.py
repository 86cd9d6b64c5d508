"""The evaluation protocol: draw, measure in one streaming pass, report."""

import dataclasses
import functools
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.evaluation.choice import choose_metrics, needed_network
from pidistill.evaluation.features import FeatureNetwork
from pidistill.evaluation.features.trained import Encoder
from pidistill.evaluation.metrics import METRICS, Measured, Values, compute
from pidistill.evaluation.opening import (
    Averages,
    ModelOrSamples,
    Opened,
    Say,
    choose_network,
    drawn,
    open_reference,
    open_subjects,
)
from pidistill.evaluation.reference import Reference, ReferenceFeatures
from pidistill.evaluation.sampling import BLOCK, TEACHER_STEPS, Sampler, Subject, own_share
from pidistill.evaluation.streaming import look_at
from pidistill.processes import ALONE, Processes
from pidistill.progress import Show, counted, no_progress

FACTS = {"nfe", "num_samples", "error_num_samples", "seed", "teacher_nfe", "speed_batch_size"}
"""Numbers in the results that are not metrics."""


@torch.random.fork_rng(devices=[])
def evaluate(
    model_or_samples: ModelOrSamples,
    reference: str | Path | Dataset | Tensor | Reference | None = None,
    *,
    num: int | None = None,
    seed: int | Sequence[int] = 0,
    teacher: str | Denoiser | None = None,
    steps: int | None = None,
    refine: int = 0,
    solver: str | None = None,
    ema: Averages = None,
    metrics: Sequence[str] | None = None,
    features: str | FeatureNetwork = "auto",
    weights: str | Path | None = None,
    allow_download: bool = False,
    num_error: int = 5000,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    store: str | Path | None = None,
    pictures: str | Path | None = None,
    processes: Processes | None = None,
    progress: Show = no_progress,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure a model or samples; docs/evaluating.md describes the metrics and options.

    - `model_or_samples`: a run folder, `Student`, teacher, `.npz` or tensor (n, c, h, w).
    - `reference`: a data spec, `Dataset`, tensor or `.npz`, or `teacher[:SPEC]`, which draws one.
    - `num`, `seed`: number of samples (default 50,000, or all given), and their seed or seeds.
    - `teacher`, `num_error`: what errors are measured against (the run's teacher), on how many.
    - `steps`, `refine`, `solver`, `ema`: evaluations of a student or nodes of a teacher; averages.
    - `metrics`: names (by default all that fit, except the costly ones); `features`, `weights`,
      `allow_download`: the feature network and the file of its weights.
    - `batch_size`, `device`, `processes`: how the work is divided, and where it is done.
    - `pictures`, `store`: folders for pictures, and for samples, from which a killed call resumes.
    - `progress`, `say`: `progress(title, total, unit)` yields a counter; `say` receives notes.

    Returns JSON values, in the main process only. Raises `PidistillError` for unsuitable inputs.
    """
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    opened = open_subjects(
        model_or_samples,
        num=num,
        teacher=teacher,
        ema=ema,
        steps=steps,
        refine=refine,
        solver=solver,
        batch_size=batch_size,
        device=device,
        store=store,
        say=say,
    )
    compared = open_reference(reference, opened, say)
    candidate = choose_network(features, weights, allow_download, opened.first, compared, say)
    names = choose_metrics(metrics, opened.first, opened.teacher, compared, candidate)
    network = needed_network(candidate, names, opened.num, say)
    compared = drawn(compared, num_error, max(seeds) + 1, progress)
    terms = Terms(opened, compared, network, num_error, processes or ALONE, progress, say)
    return terms.results(names, seeds, pictures)


@dataclasses.dataclass(frozen=True)
class Terms:
    """The inputs of `evaluate`, shared by all weight averages and seeds."""

    opened: Opened
    reference: Reference | None
    network: FeatureNetwork | None
    """None if no metric needs one."""
    num_error: int
    processes: Processes
    progress: Show
    say: Say

    @functools.cached_property
    def in_features(self) -> ReferenceFeatures | None:
        """The reference in feature space; None without a reference or a network."""
        if self.reference is None or self.network is None:
            return None
        return ReferenceFeatures(self.reference, self.network, self.progress)

    def results(
        self, names: Sequence[str], seeds: Sequence[int], pictures: str | Path | None
    ) -> Values:
        """The metrics of each subject and seed; empty in all but the main process."""
        measurements: list[Values] = []
        for weights, opened in self.opened.subjects.items():
            for seed in seeds:
                measured = self.measure(dataclasses.replace(opened, seed=seed), names)
                if measured is None:
                    continue
                first = not measurements
                values = compute(measured, [n for n in names if first or METRICS[n].every_time])
                if first and pictures is not None:
                    from pidistill.evaluation.pictures import write_pictures  # loads matplotlib

                    write_pictures(Path(pictures), measured, values)
                measurements.append(values if weights is None else {"weights": weights, **values})
        if not measurements:
            return {}
        facts = dict(self.opened.facts)
        if self.reference is not None:
            facts["reference"] = self.reference.name
        if self.network is not None:
            facts["features"] = self.network.identity
        if isinstance(self.network, Encoder):
            facts["features_facts"] = self.network.description.facts
        return {**together(measurements, len(seeds)), **facts}

    def measure(self, subject: Subject, names: Collection[str]) -> Measured | None:
        """Measure a subject, and its teacher if the error is requested."""
        num, teacher, of_teacher = self.opened.num, self.opened.teacher, None
        in_features = self.in_features  # raises if it does not fit, before any sampling
        kept = [] if subject.folder is None else list(subject.folder.glob("*.safetensors"))
        if kept:
            self.say(f"resuming: {counted(len(kept), 'block')} of {BLOCK} samples exist already")
        num_error = min(num, self.num_error) if "error" in names else 0
        total = own_share(num, self.processes) + own_share(num_error, self.processes)
        with self.progress("sampling", total, "samples") as advance:
            look = functools.partial(
                look_at, network=self.network, processes=self.processes, on_batch=advance
            )
            seen = look(subject, num)
            if num_error and teacher is not None and isinstance(subject, Sampler):
                solved = dataclasses.replace(
                    subject, model=teacher, steps=TEACHER_STEPS, refine=0, solver="heun"
                )
                of_teacher = look(solved, num_error, rival=subject)
        if seen is None:
            return None
        return Measured(
            subject, teacher, seen, of_teacher, self.reference, in_features, self.progress
        )


def together(measurements: Sequence[Values], num_seeds: int) -> Values:
    """Merge measurements into one result: the first, the list, and a summary over seeds."""
    metrics = {name: value for name, value in measurements[0].items() if name != "weights"}
    if len(measurements) == 1:
        return metrics
    shared = [name for name, value in measurements[-1].items() if not isinstance(value, dict)]
    every = [{name: one[name] for name in shared} for one in measurements]
    metrics["measurements"] = every
    if num_seeds > 1:
        metrics["over_seeds"] = over_seeds(every)
    return metrics


def over_seeds(measurements: Sequence[Values]) -> list[Values]:
    """Minimum, mean, maximum and standard deviation over seeds, per weight average."""
    groups: dict[str | None, list[Values]] = {}
    for one in measurements:
        groups.setdefault(one.get("weights"), []).append(one)
    summaries = []
    for weights, group in groups.items():
        summary: Values = {} if weights is None else {"weights": weights}
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
