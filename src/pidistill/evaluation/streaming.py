"""One streaming pass over samples, by all processes, in the order of their index."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pidistill import images
from pidistill.errors import PidistillError
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
"""Samples whose pixels are compared with each other and with training images."""

T = TypeVar("T")


class Seen(NamedTuple):
    """What a pass leaves behind, on the CPU."""

    x: Tensor
    """The first `KEPT` samples, as they are measured (see `as_measured`)."""
    prints: Tensor
    """Fingerprints of all samples, shape (n,): equal where samples are."""
    features: FeatureBatch | None
    """Of all samples, where there is a feature network."""
    errors: Tensor | None
    """RMS distances to the rival's samples, shape (n,), float64, where there is one."""
    nfe: int
    """Evaluations that each sample took; 0 where that is not known."""


def look_at(
    subject: Subject,
    num: int,
    *,
    network: FeatureNetwork | None = None,
    rival: Subject | None = None,
    processes: Processes,
    on_batch: OnBatch = lambda count: None,
) -> Seen | None:
    """Look at the first `num` samples once, in all processes; None but in the main process.

    Args:
        subject: What draws the samples.
        num: How many.
        network: The feature network, on its device; None where no metric needs it.
        rival: What draws samples of the same noise that they are compared with, as both are drawn.
        processes: Those that share the blocks; all of them have to call this.
        on_batch: Called with the number of samples that were drawn, or found on the disk.

    Raises:
        PidistillError: A sample or a feature is not finite, or the file of a block is damaged.
    """

    def look(block: range) -> Seen:
        drawn = subject.draw(block, on_batch)
        finite = drawn.x.flatten(1).isfinite().all(1)
        if not finite.all():  # they would be rounded to numbers
            raise PidistillError(
                f"{int((~finite).sum())} of the {len(block)} samples {block[0]} .. {block[-1]} of "
                f"seed {subject.seed} are not finite; has the training diverged?"
            )
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
    """Samples (n, ...), or their images where there is a decoder: images in 8 bits, else float32.

    What is in 8 bits already is returned unchanged.
    """
    x = decoded(x, decoder)
    if x.dtype == torch.uint8:
        return x
    return images.to_uint8(x) if images.is_image(tuple(x.shape[1:])) else x.float()


def as_pixels(x: Tensor) -> Tensor:
    """Samples in the numbers that are compared: float32, images in [-1, 1]."""
    return images.from_uint8(x) if x.dtype == torch.uint8 else x.float()


def in_order(num: int, work: Callable[[range], T], processes: Processes) -> Iterator[T]:
    """Do `work` for every block of `num` samples, each block in one of the processes.

    Yields what `work` returns, block by block, in the main process; nothing in the others, which
    have to iterate all the same.
    """
    every = blocks(num)
    for first in range(0, len(every), processes.count):
        own = every[first + processes.index :][:1]
        for results in processes.gather([work(block) for block in own]):
            yield from results
