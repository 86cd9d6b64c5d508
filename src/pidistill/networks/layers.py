"""Layers of the U-Nets of Karras et al. 2022, with the weight names of EDM checkpoints."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


def resampling_kernel(taps: Sequence[float]) -> Tensor:
    """The normalised 2-D kernel (1, 1, k, k) of a separable resampling filter."""
    line = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


class Conv2d(nn.Module):
    """A convolution that can also halve or double the resolution.

    With a kernel of size 0 it only resamples. Downsampling is a strided depthwise convolution with
    the filter `f`, upsampling its transpose with `4 f`, so that both preserve constant images.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        filter_last: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        """Build the layer, which resamples before the convolution.

        With `filter_last` it downsamples after the convolution ("fused" in EDM), and all padding
        comes first. `init_scale` scales the initial weights.
        """
        super().__init__()
        self.up, self.filter_last = up, filter_last
        self.box = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel > 0:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            nn.init.xavier_uniform_(self.weight)
            self.weight.data.mul_(init_scale)
        self.register_buffer(
            "resample_filter", resampling_kernel(resample_filter) if up or down else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.filter_last:
            return self.convolve_then_halve(x)
        if self.up and self.box and self.weight is not None and self.weight.shape[-1] == 1:
            # Upsampling and a 1x1 convolution commute: convolve at the lower resolution.
            x = functional.conv2d(x, self.weight, self.bias)
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.resample_filter is not None:
            x = self.resample(x, self.resample_filter)
        if self.weight is None:
            return x
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def resample(self, x: Tensor, f: Tensor) -> Tensor:
        if self.box:  # nearest neighbour and average pooling have faster kernels
            if self.up:
                return functional.interpolate(x, scale_factor=2.0, mode="nearest")
            return functional.avg_pool2d(x, 2)
        channels = x.shape[1]
        f = f.to(x.dtype).expand(channels, -1, -1, -1)
        padding = (f.shape[-1] - 1) // 2
        if self.up:
            return functional.conv_transpose2d(x, 4 * f, stride=2, padding=padding, groups=channels)
        return functional.conv2d(x, f, stride=2, padding=padding, groups=channels)

    def convolve_then_halve(self, x: Tensor) -> Tensor:
        w, f = self.weight, self.resample_filter
        assert w is not None
        assert f is not None
        h = functional.conv2d(x, w, padding=w.shape[-1] // 2 + (f.shape[-1] - 1) // 2)
        f = f.to(h.dtype).expand(h.shape[1], -1, -1, -1)
        return functional.conv2d(h, f, self.bias, stride=2, groups=h.shape[1])


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups, of at least 4 channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k / sqrt(c)) v` over pixels, all (b, heads, pixels, c).

    The fused kernel saves memory and time on a GPU, but has no forward-mode derivative. Under a
    jvp, and on the CPU, where it is no faster, the formula is evaluated directly, with the softmax
    at least in float32.
    """
    if q.is_cuda:
        with contextlib.suppress(NotImplementedError):
            return functional.scaled_dot_product_attention(q, k, v)
    scores = q @ (k / math.sqrt(q.shape[-1])).mT
    precision = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=precision).to(v.dtype) @ v


class PositionalEmbedding(nn.Module):
    """Cosines and sines of `c_noise` at frequencies from 1 down to 1/10000.

    With `endpoint`, the last of the n/2 frequencies is exactly 1/10000.
    """

    def __init__(self, num_channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.num_frequencies, self.endpoint = num_channels // 2, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        k = torch.arange(self.num_frequencies, dtype=torch.float32, device=c_noise.device)
        frequencies = (1 / 10000) ** (k / (self.num_frequencies - self.endpoint))
        angle = torch.outer(c_noise, frequencies.to(c_noise.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of `c_noise` at fixed random frequencies."""

    freqs: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * 16)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = torch.outer(c_noise, (2 * math.pi * self.freqs).to(c_noise.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def one_hot_label(label: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """One-hot labels (b, num_classes) in the dtype of `like` (b, ...); zeros for "no label"."""
    if label is None:
        return like.new_zeros(len(like), num_classes)
    classes = torch.arange(num_classes, device=label.device)
    return (label[:, None] == classes).to(like.dtype)


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments as JSON values, from its `locals()` at the start."""
    return {
        name: list(value) if isinstance(value, list | tuple) else value
        for name, value in arguments.items()
        if name not in ("self", "__class__")
    }
