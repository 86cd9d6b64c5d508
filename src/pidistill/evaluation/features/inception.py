"""Inception-v3 as used for published FIDs: TensorFlow's of 2015-12-05, ported by torch-fidelity.

EDM's reference statistics were computed with the same network. Images are resized to 299x299 as in
TensorFlow 1. The features are the 2,048 pooled activations before the classifier; the logits, as
for the Inception Score, omit its bias.
"""

import io
import urllib.error
from pathlib import Path

import torch
from torch import nn

from pidistill.errors import PidistillError, one_line
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.images import to_uint8
from pidistill.teachers.formats.weights import read_weights

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"
ORIGIN = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
OUTPUTS = ["2048", "logits_unbiased"]


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 for images of one or three channels and any size."""

    name = "inception"
    num_features = 2048

    def __init__(self, extractor: nn.Module) -> None:
        """Wrap torch-fidelity's extractor, which returns `OUTPUTS`."""
        super().__init__()
        self.extractor = extractor

    def extract(self, x: torch.Tensor) -> FeatureBatch:
        """Features (n, 2048) and logits (n, 1008) of images `x` (n, 1 or 3, h, w) in [-1, 1]."""
        features, logits = self.extractor(to_uint8(x).expand(-1, 3, -1, -1))
        return FeatureBatch(features, logits)


def load_inception(weights: Path | None, allow_download: bool) -> InceptionFeatures:
    """Load Inception-v3 with its published weights, on the CPU; see `weights_file`.

    Raises `PidistillError` if the extra `metrics` is not installed, or the weights are missing or
    not those of Inception-v3. No code in the file is executed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise PidistillError(
            f"the features 'inception' need torch-fidelity and torchvision ({error}); run: "
            'pip install "pidistill[metrics]"'
        ) from error
    except RuntimeError as error:  # torchvision's operators were built for another torch
        raise PidistillError(
            f"torchvision does not match the installed torch {torch.__version__} "
            f"({one_line(error)}); install both from the same registry: "
            f'pip install "torch==={torch.__version__.partition("+")[0]}" "pidistill[metrics]"'
        ) from error
    path = weights_file(weights, allow_download)
    # The library would unpickle the file unsafely, so it gets a copy of what we read safely.
    content = io.BytesIO()
    torch.save({key: value.float() for key, value in read_weights(path).items()}, content)
    content.seek(0)
    try:
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", OUTPUTS, feature_extractor_weights_path=content
        )
    except RuntimeError as error:
        raise PidistillError(
            f"{path} does not hold the weights of Inception-v3: {one_line(error)}"
        ) from error
    return InceptionFeatures(extractor)


def weights_file(given: Path | None, allow_download: bool) -> Path:
    """The path of `FILE`: the given file or in the given folder, by default torch hub's."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    path = hub / FILE
    if given is not None:
        path = given / FILE if given.is_dir() else given
    if path.is_file():
        return path
    if given is not None:
        raise PidistillError(f"{path} does not exist; expected the file {FILE} from {ORIGIN}")
    if not allow_download:
        raise PidistillError(
            f"the features 'inception' need {FILE} from {ORIGIN}; set allow_download, put the file "
            f"into {hub}, or name it as weights"
        )
    try:
        hub.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ORIGIN, str(path), hash_prefix=SHA256, progress=False)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise PidistillError(
            f"cannot download {FILE} from {ORIGIN}: {error}; put it into {hub} yourself"
        ) from error
    return path
