r"""LPIPS on VGG-16, the perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924).

The features $f_k$ of a classifier at five depths, each divided by its length over the channels, are
compared with a weight for each channel $c$, and averaged over the pixels $p$:

$$d(x, y) = \sum_k \frac{1}{P_k} \sum_p \sum_c
w_{kc} \left(\hat{f}_{kcp}(x) - \hat{f}_{kcp}(y)\right)^2$$

Two forms have the same weights and normalise images by the same statistics of ImageNet:

- `lpips`, that of the programs of consistency models and of PID: smaller images are enlarged to
  224x224 pixels, and the network pools by averaging;
- `lpips_standard`, that of Zhang et al.: images as they are, pooling by the maximum.

The weights are those of two public files, which are looked for on the disk and never downloaded:
see `find_weights`.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.storage import load_weights, read_tensors
from pidistill.teachers.formats.weights import read_torch

Pooling = Callable[[Tensor, int], Tensor]

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of VGG-16's five stages."""
DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of its five stages."""
MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's colours in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""
SMALLEST = 16
"""Height or width of which four poolings leave one pixel."""

VARIABLE = "PIDISTILL_LPIPS_WEIGHTS"
VGG_FILES = ("vgg16-397923af.pth", "vgg16-397923af.safetensors")
HEADS_FILES = ("vgg.pth", "vgg.safetensors", "lpips_weights.pt")
VGG_ORIGIN = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_ORIGIN = "lpips/weights/v0.1/vgg.pth of https://github.com/richzhang/PerceptualSimilarity"


class VGG16(nn.Module):
    """The convolutions of VGG-16 (Simonyan & Zisserman 2015), named as torchvision names them."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        """Build the network with fresh weights; `widths` are the channels of its five stages."""
        super().__init__()
        self.features = nn.ModuleDict()
        self.stages: list[list[str]] = []
        channels, index = 3, 0
        for width, depth in zip(widths, DEPTHS, strict=True):
            # In torchvision's list an activation follows each convolution, a pooling each stage.
            names = [str(index + 2 * i) for i in range(depth)]
            for name in names:
                self.features[name] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
            self.stages.append(names)
            index += 2 * depth + 1

    def forward(self, x: Tensor, pool: Pooling) -> Iterator[Tensor]:
        """Yield the features of each stage, (b, width, h, w), before they are pooled.

        Args:
            x: Normalised images, shape (b, 3, h, w).
            pool: How a stage is pooled before the next, called with the factor 2.
        """
        for stage, names in enumerate(self.stages):
            if stage > 0:
                x = pool(x, 2)
            for name in names:
                x = functional.relu(self.features[name](x), inplace=True)
            yield x


class Head(nn.Module):
    """A weight for each channel, named as in the lpips package, where a dropout comes first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum over the channels of `x` (b, width, h, w), giving (b, 1, h, w)."""
        return self.model["1"](x)


class LPIPS(nn.Module):
    """The features, and the heads that weigh them; frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        """Build the network with fresh weights; `widths` are the channels of the five stages."""
        super().__init__()
        self.vgg = VGG16(widths)
        self.heads = nn.ModuleDict({f"lin{i}": Head(width) for i, width in enumerate(widths)})
        # The statistics of images in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(MEAN)[:, None, None] - 1, persistent=False)
        self.register_buffer("scale", 2 * torch.tensor(STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, pool: Pooling) -> Tensor:
        """The distance of each pair of images (b, 3, h, w) in [-1, 1], shape (b,).

        It is computed in the dtype of the weights, whatever the autocast.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Stage by stage, so that the features of an image without gradient are soon freed.
            stages = zip(
                self.vgg((x.to(self.shift) - self.shift) / self.scale, pool),
                self.vgg((y.to(self.shift) - self.shift) / self.scale, pool),
                self.heads.values(),
                strict=True,
            )
            distance = x.new_zeros(len(x), dtype=self.shift.dtype)
            for features, others, head in stages:
                difference = unit_length(features) - unit_length(others)
                distance = distance + head(difference.square()).mean((1, 2, 3))
        return distance


def unit_length(features: Tensor) -> Tensor:
    """`features` (b, c, h, w) divided by their length over the channels; where it is 0, 0."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def lpips(prediction: Tensor, target: Tensor) -> Tensor:
    """LPIPS as in the published program of PID.

    Images less than 256 pixels wide are enlarged to 224x224, bilinearly; pooling is by averages.

    Args:
        prediction: Images in [-1, 1] of one or three channels, shape (b, c, h, w); the gradient
            flows to them.
        target: Images of the same shape; the gradient flows to them too, where they have one.

    Returns:
        The distances (b,), float32.

    Raises:
        PidistillError: They are no images, or the weights are not there.
    """
    require_images("lpips", tuple(prediction.shape[1:]))
    pair = [as_colour(images) for images in (prediction, target)]
    if prediction.shape[-1] < 256:
        pair = [functional.interpolate(images, size=(224, 224), mode="bilinear") for images in pair]
    return network_on(prediction.device)(*pair, functional.avg_pool2d)


def lpips_standard(prediction: Tensor, target: Tensor) -> Tensor:
    """LPIPS as in the package of Zhang et al.: images as they are, pooling by the maximum.

    See `lpips` for arguments and errors; images are at least 16 pixels high and wide.
    """
    require_images("lpips-standard", tuple(prediction.shape[1:]))
    pair = [as_colour(images) for images in (prediction, target)]
    return network_on(prediction.device)(*pair, functional.max_pool2d)


def as_colour(images: Tensor) -> Tensor:
    """Images (b, 1 or 3, h, w) as float32 with three channels (b, 3, h, w)."""
    return images.float().expand(-1, 3, -1, -1)


def require_images(name: str, sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` unless samples of a shape are what the distance `name` compares."""
    if len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
        raise PidistillError(
            f"distance {name!r} compares images of shape (1, h, w) or (3, h, w), and the samples "
            f"have shape {sample_shape}; choose another distance, such as l2"
        )
    if name == "lpips-standard" and min(sample_shape[1:]) < SMALLEST:
        raise PidistillError(
            f"distance 'lpips-standard' compares images of {SMALLEST} pixels and more, and the "
            f"samples have shape {sample_shape}; choose lpips, which enlarges them first"
        )


@functools.cache
def network_on(device: torch.device) -> LPIPS:
    """The network with its published weights, read once for each device.

    Raises `PidistillError` when the weights are not there or not those of VGG-16.
    """
    return load_lpips(*find_weights()).to(device)


def load_lpips(vgg: Path, heads: Path, widths: Sequence[int] | None = None) -> LPIPS:
    """Read the network from a file of VGG-16's weights and one of the heads', in float32.

    Args:
        vgg: State dict with torchvision's names; what is not a convolution is left out.
        heads: State dict with the lpips package's names (`lin0.model.1.weight` ...), or the list of
            the five weights that piq publishes.
        widths: Channels of the five stages; None means those of VGG-16.

    Raises:
        PidistillError: A file is damaged, or lacks a weight, or has one too many or misshapen.
    """
    network = LPIPS(WIDTHS if widths is None else widths)
    convolutions = {k: v for k, v in read(vgg).items() if k.startswith("features.")}
    load_weights(network.vgg, convolutions, str(vgg))
    load_weights(network.heads, read(heads), str(heads))
    return network


def read(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or `torch.save`, read without executing anything."""
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if isinstance(content, list) and all(isinstance(weight, Tensor) for weight in content):
        shape = (1, -1, 1, 1)
        content = {f"lin{i}.model.1.weight": w.reshape(shape) for i, w in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(w, Tensor) for w in content.values()):
        raise PidistillError(
            f"{path} holds no state dict; expected {VGG_FILES[0]} or {HEADS_FILES[0]} as published"
        )
    return content


def find_weights() -> tuple[Path, Path]:
    """The files of VGG-16's weights and of the heads'.

    They are looked for in the folder that PIDISTILL_LPIPS_WEIGHTS names, then where torchvision,
    piq and the lpips package keep theirs: the checkpoints of torch hub and the installed package,
    which is not imported.

    Raises `PidistillError`, naming what is missing and where to put it.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise PidistillError(
            f"{VARIABLE} is {named!r}, which is not a folder; name the one with "
            f"{VGG_FILES[0]} and {HEADS_FILES[0]}"
        )
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    spec = importlib.util.find_spec("lpips")
    package = [Path(path) for path in (spec and spec.submodule_search_locations) or ()]
    vgg_places = [hub / name for name in VGG_FILES]
    heads_places = [path / "weights" / "v0.1" / "vgg.pth" for path in package]
    heads_places.append(hub / "lpips_weights.pt")
    if named:
        vgg_places[:0] = [Path(named) / name for name in VGG_FILES]
        heads_places[:0] = [Path(named) / name for name in HEADS_FILES]
    vgg = next((path for path in vgg_places if path.is_file()), None)
    heads = next((path for path in heads_places if path.is_file()), None)
    if vgg is None or heads is None:
        missing = [f"{VGG_FILES[0]} ({VGG_ORIGIN})"] if vgg is None else []
        missing += [f"{HEADS_FILES[0]} ({HEADS_ORIGIN})"] if heads is None else []
        raise PidistillError(
            f"the distance LPIPS needs {' and '.join(missing)}, and nothing is downloaded for you; "
            f"put what is missing into a folder and set {VARIABLE} to it"
        )
    return vgg, heads
