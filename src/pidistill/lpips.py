r"""LPIPS on VGG-16, the perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924).

The features $f_k$ of a classifier at five depths, normalised to unit length over the channels, are
compared with one weight per channel $c$ and averaged over the pixels $p$:

$$d(x, y) = \sum_k \frac{1}{P_k} \sum_p \sum_c
w_{kc} \left(\hat{f}_{kcp}(x) - \hat{f}_{kcp}(y)\right)^2$$

Two variants share the weights and the normalisation of images by ImageNet's statistics:

- `lpips`, from the published code of consistency models and PID: small images are enlarged to
  224x224 pixels, and the network uses average pooling;
- `lpips_standard`, from Zhang et al.: images keep their size, and the network uses max pooling.

This is a reimplementation because piq and lpips need torchvision and download their weights; here
the weights are read from two public files on disk (see `find_weights`).
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.storage import load_weights

Pooling = Callable[[Tensor, int], Tensor]

WIDTHS, DEPTHS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
"""Channels and number of convolutions of VGG-16's five stages."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's colours in [0, 1]."""
SMALLEST = 16
"""Height or width that four poolings reduce to one pixel."""

VARIABLE = "PIDISTILL_LPIPS_WEIGHTS"
"""Environment variable with the path of a folder that holds both files."""
VGG_FILE = "vgg16-397923af.pth"
HEADS_FILE = "vgg.pth"
ORIGINS = {
    VGG_FILE: "https://download.pytorch.org/models/vgg16-397923af.pth",
    HEADS_FILE: "lpips/weights/v0.1/vgg.pth of https://github.com/richzhang/PerceptualSimilarity",
}


class VGG16(nn.Module):
    """The convolutions of VGG-16 (Simonyan & Zisserman 2015), named as in torchvision."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(widths, DEPTHS, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.Identity())  # the end of a stage, where torchvision pools
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, pool: Pooling) -> Iterator[Tensor]:
        """Yield the features of normalised images (b, 3, h, w) at each stage, (b, width, h, w).

        `pool` is applied between stages, with a factor of 2.
        """
        for layer in self.features:
            if isinstance(layer, nn.Identity):
                yield x
                x = pool(x, 2)
            else:
                x = layer(x)
        yield x


class LPIPS(nn.Module):
    """The frozen features and the heads that weight them; `widths` as in `WIDTHS`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.vgg = VGG16(widths)
        self.heads = nn.ModuleDict()
        for i, width in enumerate(widths):  # Identity stands for the lpips package's dropout
            weigh = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.heads[f"lin{i}"] = nn.ModuleDict({"model": weigh})
        # The statistics of images in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(MEAN)[:, None, None] - 1, persistent=False)
        self.register_buffer("scale", 2 * torch.tensor(STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, pool: Pooling) -> Tensor:
        """The distance between each pair of images (b, 3, h, w) in [-1, 1], shape (b,).

        Computed in the dtype of the weights, even under autocast.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Going stage by stage frees features that need no gradient early.
            features = (
                self.vgg((images.to(self.shift) - self.shift) / self.scale, pool)
                for images in (x, y)
            )
            distance = x.new_zeros(len(x), dtype=self.shift.dtype)
            for fx, fy, head in zip(*features, self.heads.values(), strict=True):
                squares = (unit_length(fx) - unit_length(fy)).square()
                distance = distance + head.get_submodule("model")(squares).mean((1, 2, 3))
        return distance


def unit_length(features: Tensor) -> Tensor:
    """Normalise `features` (b, c, h, w) to unit length over the channels; zeros stay zero."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def lpips(prediction: Tensor, target: Tensor) -> Tensor:
    """LPIPS as in the published code of PID.

    Images less than 256 pixels wide are resized bilinearly to 224x224; the network uses average
    pooling.

    Args:
        prediction: Images in [-1, 1] with one or three channels, shape (b, c, h, w).
        target: Images of the same shape. Gradients flow to both.

    Returns:
        The distances (b,), float32.

    Raises:
        PidistillError: The samples are not images, or the weights are missing.
    """
    pair = _in_colour("lpips", prediction, target)
    if prediction.shape[-1] < 256:
        pair = [functional.interpolate(images, size=(224, 224), mode="bilinear") for images in pair]
    return network_on(prediction.device)(*pair, functional.avg_pool2d)


def lpips_standard(prediction: Tensor, target: Tensor) -> Tensor:
    """LPIPS as in the package of Zhang et al.: original image size, max pooling.

    Arguments and errors as in `lpips`; images must be at least 16 pixels high and wide.
    """
    pair = _in_colour("lpips-standard", prediction, target)
    return network_on(prediction.device)(*pair, functional.max_pool2d)


def _in_colour(name: str, *pair: Tensor) -> list[Tensor]:
    require_images(name, tuple(pair[0].shape[1:]))
    return [images.float().expand(-1, 3, -1, -1) for images in pair]


def require_images(name: str, sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` unless the distance `name` can compare samples of this shape."""
    if len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
        raise PidistillError(
            f"distance {name!r} compares images of shape (1, h, w) or (3, h, w), but the samples "
            f"have shape {sample_shape}; choose another distance, such as l2"
        )
    if name == "lpips-standard" and min(sample_shape[1:]) < SMALLEST:
        raise PidistillError(
            f"distance 'lpips-standard' needs images of at least {SMALLEST}x{SMALLEST} pixels, but "
            f"the samples have shape {sample_shape}; choose lpips, which enlarges them first"
        )


@functools.cache
def network_on(device: torch.device) -> LPIPS:
    """The network with its published weights, in float32, cached per device.

    Raises `PidistillError` if a file is missing or damaged, or holds another network.
    """
    vgg, heads = find_weights()
    network = LPIPS(WIDTHS)
    convolutions = {k: v for k, v in read(vgg).items() if k.startswith("features.")}
    load_weights(network.vgg, convolutions, str(vgg))
    load_weights(network.heads, read(heads), str(heads))
    return network.to(device)


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or `torch.save` without executing anything.

    Converts the list of five weights that piq publishes to the lpips package's state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or foreign files raise many types
        raise PidistillError(f"{path} is not readable as weights") from error
    if isinstance(content, list) and all(isinstance(weight, Tensor) for weight in content):
        content = {f"lin{i}.model.1.weight": w.reshape(1, -1, 1, 1) for i, w in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(w, Tensor) for w in content.values()):
        raise PidistillError(f"{path} holds no state dict; expected {' or '.join(ORIGINS)}")
    return content


def find_weights() -> tuple[Path, Path]:
    """Find the weight files of VGG-16 and of the heads.

    Searches the folder that PIDISTILL_LPIPS_WEIGHTS names, then the locations that torchvision, piq
    and the lpips package use: torch hub's checkpoints and the installed package, which is not
    imported.

    Raises `PidistillError` that names the missing files and where to put them.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise PidistillError(
            f"{VARIABLE} is {named!r}, which is not a folder; set it to the folder with "
            f"{' and '.join(ORIGINS)}"
        )
    own = [Path(named)] if named else []
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    spec = importlib.util.find_spec("lpips")
    package = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    vgg_names = (VGG_FILE, "vgg16-397923af.safetensors")
    heads_names = (HEADS_FILE, "vgg.safetensors", "lpips_weights.pt")
    places = {
        VGG_FILE: [folder / name for folder in (*own, hub) for name in vgg_names],
        HEADS_FILE: [
            *[folder / name for folder in own for name in heads_names],
            *[folder / "weights" / "v0.1" / HEADS_FILE for folder in package],
            hub / "lpips_weights.pt",
        ],
    }
    found = {name: next(filter(Path.is_file, paths), None) for name, paths in places.items()}
    vgg, heads = found.values()
    if vgg is None or heads is None:
        missing = [f"{name} ({ORIGINS[name]})" for name, path in found.items() if path is None]
        raise PidistillError(
            f"the distance LPIPS needs {' and '.join(missing)}, which pidistill does not download; "
            f"put the missing files into a folder and set {VARIABLE} to it"
        )
    return vgg, heads
