"""References: what samples are compared with, in the features of a network.

A reference is a data set of ours, a folder of images, an `.npz` of samples, or one of EDM's, which
holds the mean `mu` and the covariance `sigma` of features of Inception-v3.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.data import load_data
from pidistill.errors import PidistillError
from pidistill.evaluation import cache
from pidistill.evaluation.collect import SINKS, Summary, summarise
from pidistill.evaluation.features.base import FeatureNetwork
from pidistill.evaluation.frechet import BLOCK, Statistics, frechet_distance
from pidistill.images import to_uint8
from pidistill.noise import device_of
from pidistill.sample_files import open_npz, read_samples


class Reference(NamedTuple):
    """A reference in the features of a network."""

    name: str
    """What it was read from."""
    network: FeatureNetwork
    summary: Summary
    """What was collected of it; see `collect.SINKS`."""

    @property
    def split_half(self) -> float:
        """Frechet distance between two random halves: what sampling alone costs at half size."""
        value: float = self.summary["split_half"]
        return value

    def distance(self, x: Tensor, batch_size: int = 500) -> float:
        """Frechet distance of samples `x` (n, c, h, w) in [-1, 1] to the reference."""
        parts = _on_device(x.split(batch_size), device_of(self.network), lambda count: None)
        statistics = summarise(self.network, parts, len(x), ["statistics"])["statistics"]
        return frechet_distance(statistics, self.summary["statistics"])


class ReferenceData(NamedTuple):
    """A reference as it is read, before any network has seen it."""

    name: str
    """What it was read from."""
    images: Tensor | None
    """Shape (n, c, h, w), float32, in [-1, 1]; None where only statistics are known."""
    labels: Tensor | None
    """Class labels (n,), int64, or None where there are none."""
    statistics: Statistics | None
    """Given statistics of features; None where there are images."""
    are_drawn: bool = False
    """Whether a model drew the images: then nobody was trained on them."""

    @property
    def can_be_collected(self) -> frozenset[str]:
        """Keys of `collect.SINKS` that `collect_reference` finds."""
        return frozenset({"statistics"} if self.images is None else SINKS)


def read_reference(spec: str) -> ReferenceData:
    """Read the reference that `spec` names.

    Args:
        spec: A data set of `data.load_data`, a folder of images, or an `.npz` file with an array
            `samples` or with `mu` and `sigma`.

    Raises:
        PidistillError: It is none of these, or is damaged.
    """
    if spec.endswith(".npz"):
        file = Path(spec)
        given = _read_statistics(file)
        images = read_samples(file) if given is None else None
        return ReferenceData(spec, images, None, given)
    data = load_data(f"folder:{spec}" if Path(spec).is_dir() else spec)
    return ReferenceData(spec, data.images, data.labels, None)


def collect_reference(
    data: ReferenceData,
    network: FeatureNetwork,
    needs: Collection[str],
    *,
    batch_size: int = 500,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Summary:
    """What `needs` names of a reference, from the cache or in one pass over its images.

    Args:
        data: The reference.
        network: The feature network, on its device.
        needs: Keys of `collect.SINKS`, some of `data.can_be_collected`.
        batch_size: Images that are evaluated at once.
        on_batch: Called after every batch with its size.

    Raises:
        PidistillError: It cannot be had of this reference, or not with this network.
    """
    if data.images is None:
        return {"statistics": _given_statistics(data, network)}
    identity = _identity(data.images, network)
    summary: Summary = {"num": len(data.images)}
    for name in needs:
        kept = cache.recall(f"{name}-{identity}") if name in PACKINGS else None
        if kept is not None:
            summary[name] = PACKINGS[name].unpack(kept)
    missing = [name for name in needs if name not in summary]
    if missing:
        parts = _on_device(data.images.split(batch_size), device_of(network), on_batch)
        summary.update(summarise(network, parts, len(data.images), missing))
        for name in missing:
            if name in PACKINGS:
                cache.keep(f"{name}-{identity}", PACKINGS[name].pack(summary[name]))
    return summary


class Packing(NamedTuple):
    """How the result of a sink is kept as tensors."""

    pack: Callable[[Any], dict[str, Tensor]]
    unpack: Callable[[dict[str, Tensor]], Any]


PACKINGS = {
    "statistics": Packing(Statistics._asdict, lambda kept: Statistics(**kept)),
    "split_half": Packing(
        lambda value: {"value": torch.tensor(value, dtype=torch.float64)},
        lambda kept: kept["value"].item(),
    ),
    "features": Packing(lambda values: {"features": values}, lambda kept: kept["features"]),
}
"""What is cached, by its key in `collect.SINKS`."""


def _on_device(
    parts: Iterable[Tensor], device: torch.device, on_batch: Callable[[int], None]
) -> Iterator[Tensor]:
    """Yield `parts` on a device, and tell `on_batch` of each that is done with."""
    for part in parts:
        yield part.to(device)
        on_batch(len(part))


def _identity(images: Tensor, network: FeatureNetwork) -> str:
    """Content hash of images as 8-bit pixels, and of the network that sees them."""
    digest = hashlib.sha256(f"{network.identity} {tuple(images.shape)}".encode())
    for part in images.split(BLOCK):
        digest.update(to_uint8(part).contiguous().numpy().data)
    return f"{network.name}-{digest.hexdigest()}"


def _given_statistics(data: ReferenceData, network: FeatureNetwork) -> Statistics:
    """The statistics that a reference gives, where they can be of features of `network`.

    Raises `PidistillError` where they are of another number of features.
    """
    assert data.statistics is not None
    if len(data.statistics.mean) != network.num_features:
        raise PidistillError(
            f"{data.name} holds statistics of {len(data.statistics.mean)} features; the network "
            f"{network.name!r} has {network.num_features}; choose the features that they were made "
            "with: EDM's are of inception"
        )
    return data.statistics


def _read_statistics(file: Path) -> Statistics | None:
    """The arrays `mu` and `sigma` of an `.npz` file, or None where it has neither.

    Raises `PidistillError` when the file is damaged, or they are no mean and covariance.
    """
    with open_npz(file) as content:
        if not {"mu", "sigma"} <= set(content.files):
            return None
        mean, covariance = content["mu"], content["sigma"]
    kinds = {mean.dtype.kind, covariance.dtype.kind}
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or kinds != {"f"}:
        raise PidistillError(
            f"{file}: mu is {mean.dtype} of shape {mean.shape} and sigma {covariance.dtype} of "
            f"shape {covariance.shape}; expected floating point numbers, (d,) and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise PidistillError(f"{file}: mu or sigma holds a number that is not finite")
    if np.abs(covariance - covariance.T).max() > 1e-4 * np.abs(covariance).max():
        raise PidistillError(f"{file}: sigma is not symmetric, so it is no covariance")
    return Statistics(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
