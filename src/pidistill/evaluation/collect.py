"""One pass over samples: what the metrics need of their features, in as little memory as it takes.

What a metric needs of the samples is named by a key of `SINKS`:

- `statistics`: mean and covariance of the features, for Frechet distances;
- `split_half`: the Frechet distance between two random halves, what sampling alone costs;
- `features`: the features themselves, in a temporary file, for kernels and neighbours;
- `class_scores`: what the logits say, for the Inception Score.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.evaluation.frechet import BLOCK, Moments, Statistics, frechet_distance
from pidistill.evaluation.inception_score import ClassScores
from pidistill.noise import Draws

Summary = dict[str, Any]
"""What a pass leaves: the result of each sink by its key, and `num`, the number of samples."""


class Sink(Protocol):
    """What takes in blocks of features and sums them up."""

    def add(self, block: FeatureBatch) -> None:
        """Take in the next block."""

    def result(self) -> Any:
        """Sum up all blocks."""


class _Statistics:
    """`Statistics` of all features."""

    def __init__(self, num: int, num_features: int) -> None:
        self.moments = Moments()

    def add(self, block: FeatureBatch) -> None:
        self.moments.add(block.features)

    def result(self) -> Statistics:
        return self.moments.result()


class _SplitHalf:
    """The Frechet distance between two random halves of the samples."""

    def __init__(self, num: int, num_features: int) -> None:
        order = Draws(0, 0, num).uniform("split").argsort()
        self.in_first = torch.zeros(num, dtype=torch.bool)
        self.in_first[order[: num // 2]] = True
        self.halves = Moments(), Moments()
        self.first = 0

    def add(self, block: FeatureBatch) -> None:
        part = self.in_first[self.first : self.first + len(block.features)]
        self.first += len(part)
        for half, mask in zip(self.halves, (part, ~part), strict=True):
            if mask.any():
                half.add(block.features[mask.to(block.features.device)])

    def result(self) -> float:
        first, second = self.halves
        return frechet_distance(first.result(), second.result())


class _Features:
    """All features (num, d), float32, in a temporary file that is gone when they are."""

    def __init__(self, num: int, num_features: int) -> None:
        with tempfile.TemporaryFile() as file:
            self.array = np.memmap(file, np.float32, "w+", shape=(num, num_features))
        self.first = 0

    def add(self, block: FeatureBatch) -> None:
        values = block.features.float().cpu().numpy()
        self.array[self.first : self.first + len(values)] = values
        self.first += len(values)

    def result(self) -> Tensor:
        return torch.from_numpy(self.array)


class _ClassScores:
    """`ClassScores` of the logits."""

    def __init__(self, num: int, num_features: int) -> None:
        self.scores = ClassScores(num)

    def add(self, block: FeatureBatch) -> None:
        if block.logits is None:
            raise PidistillError(
                "the Inception Score needs a classifier, and these features come from none; leave "
                "it out, or choose the features inception"
            )
        self.scores.add(block.logits)

    def result(self) -> Tensor:
        return self.scores.result()


SINKS: dict[str, Callable[[int, int], Sink]] = {
    "statistics": _Statistics,
    "split_half": _SplitHalf,
    "features": _Features,
    "class_scores": _ClassScores,
}


class Collector:
    """Sums up the features of samples that come in by the order of their index.

    They are cut into blocks of a fixed size, so that the result has the same bits however they
    are split into batches, or over processes that hand their batches on in that order.
    """

    def __init__(self, num: int, num_features: int, needs: Collection[str]) -> None:
        """Begin.

        Args:
            num: How many samples there will be.
            num_features: Features of each.
            needs: Keys of `SINKS`.
        """
        self.num = num
        self.seen = 0
        self.sinks: dict[str, Sink] = {name: SINKS[name](num, num_features) for name in needs}
        self.pending: list[FeatureBatch] = []
        self.num_pending = 0

    def add(self, batch: FeatureBatch) -> None:
        """Take in the next samples.

        Raises `PidistillError` when one is not finite, or a metric cannot be had of them.
        """
        self.pending.append(batch)
        self.num_pending += len(batch.features)
        if self.num_pending >= BLOCK:
            whole = _joined(self.pending)
            done = len(whole.features) // BLOCK * BLOCK
            for first in range(0, done, BLOCK):
                self._feed(_part(whole, first, first + BLOCK))
            self.pending = [_part(whole, done, self.num_pending)]
            self.num_pending -= done

    def result(self) -> Summary:
        """What the needs named, by name, and `num`.

        Raises `PidistillError` when there were more or fewer samples than said.
        """
        if self.num_pending:
            self._feed(_joined(self.pending))
            self.pending, self.num_pending = [], 0
        if self.seen != self.num:
            raise PidistillError(f"{self.seen} samples came in; expected {self.num}")
        return {"num": self.num, **{name: sink.result() for name, sink in self.sinks.items()}}

    def _feed(self, block: FeatureBatch) -> None:
        self.seen += len(block.features)
        if self.seen > self.num:
            raise PidistillError(f"more than {self.num} samples came in")
        for sink in self.sinks.values():
            sink.add(block)


@torch.no_grad()
def summarise(
    network: FeatureNetwork, batches: Iterable[Tensor], num: int, needs: Collection[str]
) -> Summary:
    """Run `num` samples through a feature network once and sum up what `needs` names.

    Args:
        network: The network.
        batches: The samples (n, c, h, w) in [-1, 1], by the order of their index, on the network's
            device.
        num: How many there are in all.
        needs: Keys of `SINKS`.

    Raises:
        PidistillError: See `Collector`.
    """
    collector = Collector(num, network.num_features, needs)
    for batch in batches:
        collector.add(network(batch))
    return collector.result()


def _joined(batches: list[FeatureBatch]) -> FeatureBatch:
    """Batches as one."""
    logits = [batch.logits for batch in batches if batch.logits is not None]
    return FeatureBatch(
        torch.cat([batch.features for batch in batches]), torch.cat(logits) if logits else None
    )


def _part(batch: FeatureBatch, first: int, last: int) -> FeatureBatch:
    """Samples `first` to `last` of a batch."""
    logits = batch.logits
    return FeatureBatch(batch.features[first:last], None if logits is None else logits[first:last])
