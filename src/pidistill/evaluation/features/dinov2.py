"""DINOv2 (Oquab et al. 2023): features closer to human judgement than those of Inception-v3.

Stein et al. (2023), "Exposing flaws of generative model evaluation metrics", compare the two.
Images are resized to 224x224 (bicubic, antialiased) and normalised with ImageNet's statistics. The
features are the class token after the final layer norm. Published distances use ViT-L/14.
"""

from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError, one_line
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork

REPOSITORY = "facebook/dinov2-large"
FILES = ("config.json", "model.safetensors")
PUBLISHED = f"{' and '.join(FILES)} of https://huggingface.co/{REPOSITORY}"
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics for red, green and blue."""


class Dinov2Features(FeatureNetwork):
    """A vision transformer for images of one or three channels and any size."""

    name = "dinov2"
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, num_features: int) -> None:
        """Wrap transformers' `Dinov2Model`, with tokens of size `num_features`."""
        super().__init__()
        self.model = model
        self.num_features = num_features
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def extract(self, x: Tensor) -> FeatureBatch:
        """Features (n, num_features) of images `x` (n, 1 or 3, h, w) in [-1, 1]; no logits."""
        pixels = functional.interpolate(
            (x.expand(-1, 3, -1, -1) + 1) / 2, size=(SIZE, SIZE), mode="bicubic", antialias=True
        )
        tokens = self.model((pixels - self.mean) / self.std).last_hidden_state
        return FeatureBatch(tokens[:, 0], None)


def load_dinov2(weights: Path | None, allow_download: bool) -> Dinov2Features:
    """Load DINOv2 from a folder with `FILES`, by default in the Hugging Face cache.

    Raises `PidistillError` if transformers is not installed, or the weights are missing or not
    those of DINOv2. No code in them is executed.
    """
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise PidistillError(
            f"the features 'dinov2' need transformers ({one_line(error)}); run: "
            'pip install "pidistill[metrics]"'
        ) from error
    folder = _cached_folder(allow_download) if weights is None else weights
    for name in FILES:
        if not (folder / name).is_file():
            raise PidistillError(
                f"{folder / name} does not exist; expected a folder with {PUBLISHED}"
            )
    try:
        model, report = Dinov2Model.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, with their names
            output_loading_info=True,
        )
    except Exception as error:  # a foreign folder can raise anything
        raise PidistillError(f"{folder} holds no DINOv2: {one_line(error)}") from error
    for what, keys in report.items():  # weights left random or unused
        if keys:
            raise PidistillError(
                f"{folder} holds another network than its config.json describes: "
                f"{what.replace('_', ' ')} {', '.join(map(str, sorted(keys)[:3]))}"
            )
    return Dinov2Features(model, int(model.config.hidden_size))


def _cached_folder(allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                REPOSITORY, allow_patterns=list(FILES), local_files_only=not allow_download
            )
        )
    except Exception as error:  # network, hub or disk can fail in any way
        if allow_download:
            raise PidistillError(f"cannot download {PUBLISHED}: {one_line(error)}") from error
        raise PidistillError(
            f"the features 'dinov2' need {PUBLISHED}; set allow_download, or put them into a "
            "folder and name it as weights"
        ) from error
