"""One streaming pass over samples, shared by all processes, in index order."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pidistill import images
from pidistill.evaluation.features.base import (
    FeatureBatch,
    FeatureNetwork,
    features_of,
    joined,
)
from pidistill.evaluation.neighbours import fingerprints
from pidistill.evaluation.sampling import OnBatch, Subject, blocks, decoded
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.processes import Processes

KEPT = 2000
"""Samples kept for comparison with each other and with training images."""

T = TypeVar("T")


class Seen(NamedTuple):
    """The results of a pass, on the CPU."""

    x: Tensor
    """The first `KEPT` samples, as measured (see `as_measured`)."""
    prints: Tensor
    """Fingerprints of all samples, shape (n,); equal for equal samples."""
    features: FeatureBatch | None
    """Features of all samples; None without a feature network."""
    errors: Tensor | None
    """RMS distances to the rival's samples, shape (n,), float64; None without a rival."""
    nfe: int
    """Network evaluations per sample; 0 if unknown."""


def look_at(
    subject: Subject,
    num: int,
    *,
    network: FeatureNetwork | None = None,
    rival: Subject | None = None,
    processes: Processes,
    on_batch: OnBatch = lambda count: None,
) -> Seen | None:
    """Pass over the first `num` samples once; returns None in all but the main process.

    Args:
        subject: Draws the samples.
        num: Number of samples.
        network: The feature network, on its device; None if no metric needs it.
        rival: Draws samples of the same noise to compare with, before decoding.
        processes: The processes that share the blocks; all of them must call this function.
        on_batch: Called with the number of samples drawn or read.

    Raises:
        PidistillError: A sample or a feature is not finite, or the file of a block is damaged.
    """

    def look(block: range) -> Seen:
        drawn = subject.draw(block, on_batch)
        x = as_measured(drawn.x, subject.decoder).cpu()
        return Seen(
            x=x[: max(0, KEPT - block.start)].clone(),
            prints=fingerprints(x),
            features=None if network is None else features_of(x, network),
            errors=None if rival is None else per_sample_rms(rival.draw(block).x, drawn.x),
            nfe=drawn.nfe,
        )

    parts = list(in_order(num, look, processes))
    if not processes.is_main:
        return None
    features = [part.features for part in parts if part.features is not None]
    errors = [part.errors for part in parts if part.errors is not None]
    return Seen(
        x=torch.cat([part.x for part in parts]),
        prints=torch.cat([part.prints for part in parts]),
        features=joined(features) if features else None,
        errors=torch.cat(errors) if errors else None,
        nfe=parts[0].nfe,
    )


def as_measured(x: Tensor, decoder: nn.Module | None = None) -> Tensor:
    """Decode samples (n, ...) if there is a decoder, then round images to uint8; else float32."""
    x = decoded(x, decoder)
    if x.dtype == torch.uint8:
        return x
    return images.to_uint8(x) if images.is_image(tuple(x.shape[1:])) else x.float()


def as_pixels(x: Tensor) -> Tensor:
    """Samples as float32, with images in [-1, 1]."""
    return images.from_uint8(x) if x.dtype == torch.uint8 else x.float()


def in_order(num: int, work: Callable[[range], T], processes: Processes) -> Iterator[T]:
    """Call `work` for each block of `num` samples, each in one of the processes.

    Yields the results in block order in the main process, and nothing in the others, which must
    iterate too.
    """
    every = blocks(num)
    for first in range(0, len(every), processes.count):
        own = every[first + processes.index :][:1]
        for results in processes.gather([work(block) for block in own]):
            yield from results
