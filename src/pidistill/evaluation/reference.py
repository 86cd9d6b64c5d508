"""References: what samples are compared with, in the feature space of a network.

Features and statistics are cached in the folder PIDISTILL_CACHE, or in `pidistill` in the user's
cache folder (XDG_CACHE_HOME or `~/.cache`), under a hash of the pixels and the network. The cache
may be deleted at any time.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.data import Dataset, is_data_spec, load_data
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import FeatureNetwork, features_of
from pidistill.evaluation.frechet import Statistics, split_half_distance, statistics
from pidistill.images import to_uint8
from pidistill.model_folder import is_model_folder
from pidistill.noise import device_of
from pidistill.paths import cache_folder, user_path
from pidistill.progress import Show, no_progress
from pidistill.sample_files import open_npz, read_samples, samples_of
from pidistill.storage import read_tensors, tensors_sha256, write_tensors

CHECKSUM = "sha256"
HASHED_AT_ONCE = 500

logger = logging.getLogger(__name__)


class Reference(NamedTuple):
    """A reference as read: images, or statistics of features."""

    name: str
    """Where it was read from."""
    images: Tensor | None
    """Shape (n, c, h, w), float32 in [-1, 1], or uint8."""
    statistics: Statistics | None = None
    """Precomputed statistics of features."""
    teacher: Denoiser | None = None
    """What draws the images, if they are not training images; until then, `images` is None."""


def read_reference(reference: str | Path | Dataset | Tensor) -> Reference:
    """Read a reference.

    It may be a data spec (see `data.load_data`), a folder of images, an `.npz` file with an array
    `samples` or with `mu` and `sigma`, a data set, or images (n, c, h, w) in [-1, 1]. Raises
    `PidistillError` if it is none of these or damaged.
    """
    if isinstance(reference, Tensor):
        return Reference("samples", samples_of(reference.cpu().numpy(), "reference"))
    if isinstance(reference, Dataset):
        return Reference(reference.name, reference.pixels)
    spec = str(reference)
    folder = spec.removeprefix("folder:").partition("?")[0]
    if is_model_folder(user_path(folder)):
        raise PidistillError(
            f"the reference {spec} is a run folder, not images; name the images, such as "
            f"folder:PATH; or what the model draws: teacher:native:{folder} if it is a teacher, "
            f"and for a student the file of 'pidistill sample {folder} -n 5000 --out samples.npz'"
        )
    if spec.endswith(".npz") and not is_data_spec(spec):
        given = _read_statistics(Path(spec))
        return Reference(spec, read_samples(spec) if given is None else None, given)
    data = f"folder:{spec}" if Path(spec.partition("?")[0]).is_dir() else spec
    return Reference(spec, load_data(data).pixels)


def _read_statistics(file: Path) -> Statistics | None:
    """The arrays `mu` and `sigma` of an `.npz` file; None unless it has both."""
    with open_npz(file) as content:
        if not {"mu", "sigma"} <= set(content.files):
            return None
        mean, covariance = content["mu"], content["sigma"]
    kinds = {mean.dtype.kind, covariance.dtype.kind}
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or kinds != {"f"}:
        raise PidistillError(
            f"{file}: mu is {mean.dtype} of shape {mean.shape} and sigma {covariance.dtype} of "
            f"shape {covariance.shape}; expected floating-point arrays (d,) and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise PidistillError(f"{file}: mu or sigma holds a number that is not finite")
    if np.abs(covariance - covariance.T).max() > 1e-4 * np.abs(covariance).max():
        raise PidistillError(f"{file}: sigma is not symmetric; expected a covariance")
    return Statistics(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())


class ReferenceFeatures:
    """A reference in the feature space of a network, computed on demand and cached."""

    def __init__(
        self, reference: Reference, network: FeatureNetwork, progress: Show = no_progress
    ) -> None:
        """Check the reference, without computing anything.

        Raises `PidistillError` if its statistics have a different number of features.
        """
        given = reference.statistics
        if given is not None and len(given.mean) != network.num_features:
            raise PidistillError(
                f"{reference.name} holds statistics of {len(given.mean)} features; the network "
                f"{network.name!r} has {network.num_features}; choose the features they were "
                "computed with, which for EDM's are inception"
            )
        self.reference, self.network, self.progress = reference, network, progress

    @property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        if self.reference.statistics is not None:
            return self.reference.statistics
        return Statistics(self._fitted["mean"], self._fitted["covariance"])

    @property
    def split_half(self) -> float:
        """Frechet distance between two random halves (see `split_half_distance`)."""
        return self._fitted["split_half"].item()

    @functools.cached_property
    def features(self) -> Tensor:
        """The features, shape (n, d)."""
        return self._cached("features", lambda: {"features": self._computed})["features"]

    @functools.cached_property
    def _fitted(self) -> dict[str, Tensor]:
        def fit() -> dict[str, Tensor]:
            device = with_float64(device_of(self.network))
            fitted = statistics(self._computed, device)
            distance = split_half_distance(self._computed, device)
            split_half = torch.tensor(distance, dtype=torch.float64)
            return {**fitted._asdict(), "split_half": split_half}

        return self._cached("fitted", fit)

    @functools.cached_property
    def _computed(self) -> Tensor:
        with self.progress("reference", len(self._images), "images") as advance:
            return features_of(self._images, self.network, advance).features

    @property
    def _images(self) -> Tensor:
        assert self.reference.images is not None  # not called for given statistics
        return self.reference.images

    @functools.cached_property
    def _identity(self) -> str:
        """Content hash of the 8-bit pixels and of the network."""
        facts = f"{self.network.identity} {tuple(self._images.shape)}"
        digest = hashlib.sha256(facts.encode())
        for part in self._images.split(HASHED_AT_ONCE):
            part = part if part.dtype == torch.uint8 else to_uint8(part)
            digest.update(part.contiguous().numpy().data)
        return f"{self.network.name}-{digest.hexdigest()}"

    def _cached(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The cached tensors `name`, or those of `compute`, which are then cached."""
        file = cache_folder() / f"{name}-{self._identity}.safetensors"
        if file.exists():
            try:
                return _recall(file)
            except (PidistillError, ValueError) as error:
                logger.warning("a cached file is damaged and will be recomputed: %s", error)
        computed = compute()
        checksum = torch.tensor(list(tensors_sha256(computed).encode()), dtype=torch.uint8)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, {**computed, CHECKSUM: checksum})
        except OSError as error:
            logger.warning("%s cannot be written, and is not cached: %s", file, error.strerror)
        return computed


def _recall(file: Path) -> dict[str, Tensor]:
    tensors = read_tensors(file)
    checksum = tensors.pop(CHECKSUM, torch.zeros(0, dtype=torch.uint8))
    if bytes(checksum.tolist()).decode() != tensors_sha256(tensors):
        raise PidistillError(f"{file} does not match its checksum")
    return tensors


def with_float64(device: torch.device) -> torch.device:
    """`device`, or the CPU if it does not support float64."""
    return torch.device("cpu") if device.type == "mps" else device
