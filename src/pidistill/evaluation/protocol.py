"""The protocol: one pass over samples in 8 bits, in the order of their index, by all processes.

A student is measured beside its teacher, whose samples of the same noise are a second pass.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.evaluation.collect import Collector, Summary
from pidistill.evaluation.diversity import as_pixels, count_duplicates, fingerprints
from pidistill.evaluation.features import FeatureBatch, FeatureNetwork
from pidistill.evaluation.metrics import needs_of_samples
from pidistill.evaluation.sampling import (
    BlockFolder,
    Sampler,
    as_measured,
    blocks,
    draw_block,
    in_order,
    measured,
)
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.noise import device_of
from pidistill.ode import Solution
from pidistill.processes import Processes

NUM = 50_000
"""Samples that published distances are taken over."""
ERROR_NUM = 5000
"""Samples that the teacher solves for: each costs it 79 evaluations."""
KEPT = 2000
"""Samples whose pixels are compared with each other and with training images."""
FEATURES_AT_ONCE = 128
"""Images that the feature network sees at once."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """How samples are measured, the same for all that are compared."""

    num: int = NUM
    """Samples."""
    error_num: int = ERROR_NUM
    """Of these, samples that are compared with the teacher's."""
    names: tuple[str, ...] = ()
    """What is measured of features: keys of `metrics.METRICS`."""
    network: FeatureNetwork | None = None
    """The feature network, on its device; None where no metric needs it."""
    processes: Processes = dataclasses.field(default_factory=Processes)
    store: Path | None = None
    """Folder where samples are kept until they are measured; None keeps none."""
    on_batch: Callable[[int], None] = lambda count: None
    """Called with the number of samples that were drawn, or found in `store`."""


class Look(NamedTuple):
    """What a block of samples leaves behind."""

    x: Tensor
    """Those among the first `KEPT`, as they are measured."""
    prints: Tensor
    """Fingerprints of all, shape (n,)."""
    features: FeatureBatch | None
    """Of all, where there is a feature network."""
    errors: Tensor | None
    """RMS distances between student and teacher, shape (n,), where both were solved for."""
    nfe: int
    """Evaluations that each sample took; 0 where that is not known."""


class Seen(NamedTuple):
    """What a pass over samples leaves behind."""

    x: Tensor
    """The first samples, at most `KEPT`, as they are measured."""
    duplicates: int
    """Samples that are bit for bit the same as an earlier one."""
    summary: Summary
    """What was collected of the features (see `collect.SINKS`)."""
    errors: Tensor | None
    """As in `Look`, of all samples."""
    nfe: int
    """As in `Look`."""


def look_at_samples(subject: Subject, terms: Terms, seed: int) -> Seen | None:
    """Look at the samples of a subject; None but in the main process."""
    source = _source(measured(subject.sampler(seed, terms.on_batch), subject.decoder), terms)

    def look(block: range) -> Look:
        drawn = source(block)
        return _look(drawn.x, block, terms, None, drawn.nfe)

    return _see(look, terms.num, terms)


def look_at_teacher(subject: Subject, terms: Terms, seed: int) -> Seen | None:
    """Look at the samples of the subject's teacher, and at the distances between the two.

    None but in the main process.
    """
    assert subject.teacher_sampler is not None
    source = _source(subject.teacher_sampler(seed, terms.on_batch), terms)
    student = subject.sampler(seed, lambda count: None)

    def look(block: range) -> Look:
        solved = source(block)
        errors = per_sample_rms(draw_block(student, block).x, solved.x)
        return _look(as_measured(solved.x, subject.decoder), block, terms, errors, solved.nfe)

    return _see(look, min(terms.num, terms.error_num), terms)


def samples_to_draw(num: int, processes: Processes) -> int:
    """How many of `num` samples are this process's own, for its progress bar."""
    return sum(len(block) for block in blocks(num)[processes.index :: processes.count])


def stored_samples(subject: Subject, terms: Terms, seed: int) -> list[BlockFolder]:
    """Where the samples of a subject, and those of its teacher, are kept until measured."""
    if terms.store is None:
        return []
    samplers = [measured(subject.sampler(seed, terms.on_batch), subject.decoder)]
    if subject.teacher_sampler is not None:
        samplers.append(subject.teacher_sampler(seed, terms.on_batch))
    return [BlockFolder(terms.store, sampler) for sampler in samplers]


def _source(sampler: Sampler, terms: Terms) -> Callable[[range], Solution]:
    """Blocks of samples: from the store, where there is one, or drawn."""
    if terms.store is None:
        return lambda block: draw_block(sampler, block)
    folder = BlockFolder(terms.store, sampler)

    def block_of(block: range) -> Solution:
        if folder.is_there(block):
            terms.on_batch(len(block))
        return folder.block(block)

    return block_of


@torch.no_grad()
def _look(x: Tensor, block: range, terms: Terms, errors: Tensor | None, nfe: int) -> Look:
    """Look at a block of samples `x` as they are measured."""
    features = None
    if terms.network is not None:
        device = device_of(terms.network)
        parts = [
            terms.network.extract(as_pixels(part.to(device))) for part in x.split(FEATURES_AT_ONCE)
        ]
        logits = [part.logits for part in parts if part.logits is not None]
        features = FeatureBatch(
            torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None
        )
        if terms.processes.count > 1:  # they travel from process to process on the CPU
            features = FeatureBatch(
                features.features.cpu(), None if features.logits is None else features.logits.cpu()
            )
    return Look(x[: max(0, KEPT - block.start)].clone(), fingerprints(x), features, errors, nfe)


def _see(look: Callable[[range], Look], num: int, terms: Terms) -> Seen | None:
    """Look at every block, and sum up in the main process."""
    collector = None
    if terms.network is not None and terms.names and terms.processes.is_main:
        needs = needs_of_samples(terms.names)
        collector = Collector(num, terms.network.num_features, needs)
    looks = []
    for one in in_order(num, look, terms.processes):
        if collector is not None and one.features is not None:
            collector.add(one.features)
        looks.append(one._replace(features=None))
    if not terms.processes.is_main:
        return None
    errors = [one.errors for one in looks if one.errors is not None]
    return Seen(
        x=torch.cat([one.x for one in looks]),
        duplicates=count_duplicates(torch.cat([one.prints for one in looks])),
        summary={} if collector is None else collector.result(),
        errors=torch.cat(errors) if errors else None,
        nfe=looks[-1].nfe,
    )
