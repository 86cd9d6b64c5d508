"""Feature networks: bundled ones by data set, published ones by name, and plug-ins.

The bundled classifiers need no download. `inception` and `dinov2` need weights published elsewhere.
Other packages add networks through entry points in the group `pidistill.features`: a name, and a
callable without arguments that returns a `FeatureNetwork`.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.evaluation.features.bundled import BUNDLED, load_bundled
from pidistill.evaluation.features.dinov2 import load_dinov2
from pidistill.evaluation.features.inception import load_inception
from pidistill.evaluation.features.trained import is_features_folder, load_trained
from pidistill.paths import user_path

__all__ = ["FeatureBatch", "FeatureNetwork", "features_for", "load_features"]

PUBLISHED: dict[str, Callable[[Path | None, bool], FeatureNetwork]] = {
    "inception": load_inception,
    "dinov2": load_dinov2,
}
"""Networks with published weights: loaded from a path, else from the cache of their library, else
downloaded if allowed."""

GROUP = "pidistill.features"


def load_features(
    name: str, *, weights: str | Path | None = None, allow_download: bool = False
) -> FeatureNetwork:
    """Load the feature network `name`, frozen and on the CPU.

    Args:
        name: `digits`, `glyphs`, `inception`, `dinov2`, the name of a plug-in, or a folder of
            `pidistill train-features`.
        weights: File or folder with the weights of `inception` or `dinov2`; None means the cache of
            their library.
        allow_download: Whether missing weights may be downloaded.

    Raises:
        PidistillError: No network has this name, its weights are missing or damaged, or an extra
            that it needs is not installed.
    """
    plugins = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    network: FeatureNetwork
    if name in PUBLISHED:
        network = PUBLISHED[name](None if weights is None else Path(weights), allow_download)
    elif weights is not None:
        raise PidistillError(
            f"weights is {str(weights)!r}, but the features {name!r} accept none; expected the "
            f"features {' or '.join(PUBLISHED)}"
        )
    elif is_features_folder(user_path(name)):
        network = load_trained(user_path(name))
    elif name in BUNDLED:
        network = load_bundled(name)
    elif name in plugins:
        network = plugins[name].load()()
    else:
        names = ("auto", *BUNDLED, *PUBLISHED, *plugins)
        raise PidistillError(
            f"unknown features {name!r}; expected one of {', '.join(names)}, or a folder of "
            "pidistill train-features"
        )
    return network.eval().requires_grad_(False)


def features_for(sample_shape: tuple[int, ...], data: str | None = None) -> FeatureNetwork | None:
    """The bundled feature network that fits samples of this shape, or None.

    `data` names the data set they are compared with. The network was trained on `data`, or, for
    other data, its shape is unambiguous.
    """
    for name, bundled in BUNDLED.items():
        if bundled.sample_shape == tuple(sample_shape) and (
            data == name or bundled.stands_for_shape
        ):
            return load_features(name)
    return None
