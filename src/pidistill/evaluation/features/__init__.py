"""Feature networks, one source a file; chosen by name, or by the shape of the samples.

`auto` is the bundled classifier of the data set that samples are compared with, `digits` or
`glyphs`. The others want weights that are not bundled: `inception`, `dinov2`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import (
    Classifier,
    ClassifierFeatures,
    FeatureBatch,
    FeatureNetwork,
)
from pidistill.evaluation.features.digits import DigitsClassifier, load_digits_classifier
from pidistill.evaluation.features.glyphs import GlyphsClassifier, load_glyphs_classifier
from pidistill.images import is_image

__all__ = [
    "BUNDLED",
    "NAMES",
    "PUBLISHED",
    "Classifier",
    "ClassifierFeatures",
    "FeatureBatch",
    "FeatureNetwork",
    "features_for",
    "features_named",
    "in_batches",
]


class Bundled(NamedTuple):
    """A network that comes with the package."""

    sample_shape: tuple[int, ...]
    load: Callable[[], FeatureNetwork]
    stands_for_shape: bool
    """Whether images of this shape are hardly ever anything but what it was trained on."""


BUNDLED = {
    "digits": Bundled(
        DigitsClassifier.sample_shape,
        lambda: ClassifierFeatures("digits", load_digits_classifier()),
        stands_for_shape=True,
    ),
    "glyphs": Bundled(
        GlyphsClassifier.sample_shape,
        lambda: ClassifierFeatures("glyphs", load_glyphs_classifier()),
        stands_for_shape=False,  # CIFAR-10 is of this shape, too
    ),
}
"""Networks that come with the package, by the data set that they were trained on."""


def _inception(weights: Path | None, allow_download: bool) -> FeatureNetwork:
    from pidistill.evaluation.features.inception import load_inception

    return load_inception(weights, allow_download)


def _dinov2(weights: Path | None, allow_download: bool) -> FeatureNetwork:
    from pidistill.evaluation.features.dinov2 import load_dinov2

    return load_dinov2(weights, allow_download)


PUBLISHED: dict[str, Callable[[Path | None, bool], FeatureNetwork]] = {
    "inception": _inception,
    "dinov2": _dinov2,
}
"""Networks whose weights are published elsewhere, loaded from a path, or from where they usually
lie, and perhaps by download."""

NAMES = ("auto", *BUNDLED, *PUBLISHED)


def features_for(sample_shape: tuple[int, ...], data: str | None = None) -> FeatureNetwork | None:
    """The bundled feature network that suits samples, or None.

    Args:
        sample_shape: Shape of the samples.
        data: The data set that they are compared with: one that a network was trained on takes
            that network. Others, and None, take one only where the shape leaves no doubt.
    """
    for name, bundled in BUNDLED.items():
        if bundled.sample_shape == tuple(sample_shape) and (
            data == name or bundled.stands_for_shape
        ):
            return bundled.load()
    return None


def features_named(
    name: str,
    sample_shape: tuple[int, ...],
    *,
    weights: Path | None = None,
    allow_download: bool = False,
) -> FeatureNetwork:
    """The feature network of a name, for samples of a shape, frozen and on the CPU.

    Args:
        name: One of `NAMES`.
        sample_shape: Shape of the samples, (c, h, w).
        weights: File or folder of its weights; None means that they are looked for where the
            libraries keep theirs.
        allow_download: Whether weights that are nowhere may be fetched.

    Raises:
        PidistillError: No network has this name or suits the shape, its weights are not there or
            are not its own, or the extra that it needs is not installed.
    """
    if name not in NAMES:
        raise PidistillError(f"unknown features {name!r}; expected one of {', '.join(NAMES)}")
    if name in PUBLISHED and not is_image(sample_shape):
        raise PidistillError(
            f"the features {name!r} are of images of 1 or 3 channels, and the samples have shape "
            f"{tuple(sample_shape)}"
        )
    if name in BUNDLED and BUNDLED[name].sample_shape != tuple(sample_shape):
        raise PidistillError(
            f"the features {name!r} are of samples of shape {BUNDLED[name].sample_shape}; these "
            f"have {tuple(sample_shape)}"
        )
    network: FeatureNetwork | None
    if name in PUBLISHED:
        network = PUBLISHED[name](weights, allow_download)
    elif name in BUNDLED:
        network = BUNDLED[name].load()
    else:
        network = features_for(sample_shape)
    if network is None:
        raise PidistillError(
            f"no bundled feature network suits samples of shape {tuple(sample_shape)}; choose one "
            f"of {', '.join(PUBLISHED)}"
        )
    return network.eval().requires_grad_(False)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 500) -> Tensor:
    """Apply `function` to `x` (n, ...) in batches, on the CPU."""
    return torch.cat([function(part) for part in x.cpu().split(batch_size)])
