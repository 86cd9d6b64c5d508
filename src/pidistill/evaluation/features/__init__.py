"""Feature networks: bundled ones by data set, published ones by name, and those of other packages.

The bundled classifiers need nothing. `inception` and `dinov2` need weights that are published
elsewhere. Another package adds a network by an entry point in the group `pidistill.features`: a
name, and a callable without arguments that returns a `FeatureNetwork`.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.evaluation.features.bundled import BUNDLED, load_bundled
from pidistill.evaluation.features.dinov2 import load_dinov2
from pidistill.evaluation.features.inception import load_inception

__all__ = ["FeatureBatch", "FeatureNetwork", "features_for", "load_features"]

PUBLISHED: dict[str, Callable[[Path | None, bool], FeatureNetwork]] = {
    "inception": load_inception,
    "dinov2": load_dinov2,
}
"""Networks with published weights: from a path, else from where their libraries keep them, else by
download where that is allowed."""

GROUP = "pidistill.features"


def load_features(
    name: str, *, weights: str | Path | None = None, allow_download: bool = False
) -> FeatureNetwork:
    """The feature network of a name, frozen and on the CPU.

    Args:
        name: `digits`, `glyphs`, `inception`, `dinov2`, or what another package calls its own.
        weights: File or folder of the weights of `inception` or `dinov2`; None means where their
            libraries keep them.
        allow_download: Whether weights that are missing may be fetched.

    Raises:
        PidistillError: No network has this name, its weights are missing or damaged, or the extra
            that it needs is not installed.
    """
    plugins = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    network: FeatureNetwork
    if name in PUBLISHED:
        network = PUBLISHED[name](None if weights is None else Path(weights), allow_download)
    elif weights is not None:
        raise PidistillError(
            f"weights is {str(weights)!r}, but the features {name!r} take none; expected features "
            f"{' or '.join(PUBLISHED)}"
        )
    elif name in BUNDLED:
        network = load_bundled(name)
    elif name in plugins:
        network = plugins[name].load()()
    else:
        names = ("auto", *BUNDLED, *PUBLISHED, *plugins)
        raise PidistillError(f"unknown features {name!r}; expected one of {', '.join(names)}")
    return network.eval().requires_grad_(False)


def features_for(sample_shape: tuple[int, ...], data: str | None = None) -> FeatureNetwork | None:
    """The bundled feature network that suits samples of this shape, or None.

    `data` names the data set that they are compared with: one that a network was trained on takes
    that network; any other takes one only where the shape leaves no doubt.
    """
    for name, bundled in BUNDLED.items():
        if bundled.sample_shape == tuple(sample_shape) and (
            data == name or bundled.stands_for_shape
        ):
            return load_features(name)
    return None
