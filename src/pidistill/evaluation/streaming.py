"""One streaming pass over samples, by all processes, in the order of their index."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.evaluation.blocks import Blocks, as_measured, as_pixels, in_order
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork, gather_features
from pidistill.evaluation.neighbours import count_duplicates, fingerprints
from pidistill.evaluation.sampling import OnBatch
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.noise import device_of
from pidistill.processes import Processes

KEPT = 2000
"""Samples whose pixels are compared with each other and with training images."""
FEATURES_AT_ONCE = 128
"""Images that the feature network sees at once."""


class Seen(NamedTuple):
    """What a pass leaves behind."""

    x: Tensor
    """The first `KEPT` samples, as they are measured (see `blocks.as_measured`)."""
    duplicates: int
    """Samples that are bit for bit the same as an earlier one."""
    features: FeatureBatch | None
    """Of all samples, where there is a feature network."""
    errors: Tensor | None
    """RMS distances to the rival's samples, shape (n,), float64, where there is one."""
    nfe: int
    """Evaluations that each sample took; 0 where that is not known."""


class _Look(NamedTuple):
    """What is seen of one block, on the CPU."""

    x: Tensor
    prints: Tensor
    features: FeatureBatch | None
    errors: Tensor | None
    nfe: int


def look_at(
    source: Blocks,
    num: int,
    *,
    network: FeatureNetwork | None = None,
    rival: Blocks | None = None,
    processes: Processes,
    on_batch: OnBatch = lambda count: None,
) -> Seen | None:
    """Look at the first `num` samples of a source once; None but in the main process.

    Args:
        source: The samples.
        num: How many.
        network: The feature network, on its device; None where no metric needs it.
        rival: Samples of the same noise that they are compared with, as both are drawn.
        processes: Those that share the blocks; all of them have to call this.
        on_batch: Called with the number of samples that were drawn, or found on the disk.

    Raises:
        PidistillError: A sample or a feature is not finite, or a block is damaged.
    """

    def look(block: range) -> _Look:
        drawn = source.get(block, on_batch)
        errors = None
        if rival is not None:
            errors = per_sample_rms(rival.get(block).x, drawn.x)
        x = as_measured(drawn.x, source.subject.decoder).cpu()
        features = None if network is None else _features(network, x)
        kept = x[: max(0, KEPT - block.start)].clone()
        return _Look(kept, fingerprints(x), features, errors, drawn.nfe)

    looks: list[_Look] = []

    def features() -> Iterator[FeatureBatch]:
        for one in in_order(num, look, processes):
            looks.append(one._replace(features=None))
            if one.features is not None:
                yield one.features

    gathered = None
    if network is not None and processes.is_main:
        gathered = gather_features(features(), num)
    else:
        list(features())
    if not processes.is_main:
        return None
    errors = [one.errors for one in looks if one.errors is not None]
    return Seen(
        x=torch.cat([one.x for one in looks]),
        duplicates=count_duplicates(torch.cat([one.prints for one in looks])),
        features=gathered,
        errors=torch.cat(errors) if errors else None,
        nfe=looks[-1].nfe,
    )


@torch.no_grad()
def _features(network: FeatureNetwork, x: Tensor) -> FeatureBatch:
    """Features of samples as they are measured, on the CPU."""
    device = device_of(network)
    parts = [network(as_pixels(part.to(device))) for part in x.split(FEATURES_AT_ONCE)]
    logits = [part.logits.cpu() for part in parts if part.logits is not None]
    return FeatureBatch(
        torch.cat([part.features.cpu() for part in parts]), torch.cat(logits) if logits else None
    )
