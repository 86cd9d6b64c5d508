"""Layers of the U-Nets of Karras et al. 2022, with the weight names of EDM checkpoints."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks import one_hot_label


def resampling_kernel(taps: Sequence[float]) -> Tensor:
    """The 2-D kernel (1, 1, k, k) of a separable resampling filter, which sums to one."""
    line = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


class Conv2d(nn.Module):
    """A convolution that may also halve or double the resolution.

    A kernel of size 0 only resamples. Down is a strided depthwise convolution with the filter
    `f`, up its transpose with `4 f`, so that a constant image keeps its value either way.
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
    ) -> None:
        """Build the layer.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output; the same where there is no kernel.
            kernel: Odd size of the convolution, or 0 for none.
            up: Double the resolution before convolving.
            down: Halve the resolution before convolving.
            resample_filter: Taps of the resampling filter.
            filter_last: Halve the resolution after convolving instead ("fused" in EDM); all of
                the padding then comes first.
        """
        super().__init__()
        self.up, self.down, self.filter_last = up, down, filter_last
        self.box = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel > 0:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            nn.init.xavier_uniform_(self.weight)
        self.register_buffer(
            "resample_filter", resampling_kernel(resample_filter) if up or down else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.filter_last:
            return self.convolve_then_halve(x)
        if self.up and self.box and self.weight is not None and self.weight.shape[-1] == 1:
            # copying pixels and mixing their channels commute: mix a quarter of the pixels
            x = functional.conv2d(x, self.weight, self.bias)
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.resample_filter is not None:
            x = self.resample(x, self.resample_filter)
        if self.weight is None:
            return x
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def resample(self, x: Tensor, f: Tensor) -> Tensor:
        """Halve or double the resolution of `x` with the filter `f` (1, 1, k, k).

        With the box filter that is copying pixels, or their mean, which have faster kernels.
        """
        if self.box and self.up:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.box:
            return functional.avg_pool2d(x, 2)
        channels = x.shape[1]
        f = f.to(x.dtype).expand(channels, -1, -1, -1)
        padding = (f.shape[-1] - 1) // 2
        if self.up:
            return functional.conv_transpose2d(x, 4 * f, stride=2, padding=padding, groups=channels)
        return functional.conv2d(x, f, stride=2, padding=padding, groups=channels)

    def convolve_then_halve(self, x: Tensor) -> Tensor:
        """Halve the resolution after the convolution, with the padding of both put first."""
        w, f = self.weight, self.resample_filter
        assert w is not None
        assert f is not None
        h = functional.conv2d(x, w, padding=w.shape[-1] // 2 + (f.shape[-1] - 1) // 2)
        f = f.to(h.dtype).expand(h.shape[1], -1, -1, -1)
        return functional.conv2d(h, f, self.bias, stride=2, groups=h.shape[1])


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k / sqrt(c)) v` over pixels, all (b, heads, pixels, c).

    The softmax has at least the precision of float32.

    On a GPU the fused kernel saves memory and time; it has no forward-mode derivative, so under a
    jvp, and on the CPU where it is no faster, the formula is evaluated as it stands.
    """
    if q.is_cuda:
        with contextlib.suppress(NotImplementedError):
            return functional.scaled_dot_product_attention(q, k, v)
    scores = q @ (k / math.sqrt(q.shape[-1])).mT
    precision = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=precision).to(v.dtype) @ v


class UNetBlock(nn.Module):
    """Residual block of a U-Net: two convolutions, the embedding between them, then attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        project_resampled_skip: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        """Build the block.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            embedding_channels: Width of the embedding.
            up: Double the resolution.
            down: Halve the resolution.
            num_heads: Attention heads; 0 means no attention.
            dropout: Dropout probability before the second convolution.
            skip_scale: Factor after every residual addition.
            eps: Epsilon of the group normalisations.
            resample_filter: Taps of the resampling filter.
            project_resampled_skip: Whether a skip that resamples has a 1x1 convolution even where
                the width stays the same.
            adaptive_scale: Whether the embedding scales and shifts; otherwise it is added.
        """
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Conv2d(
            in_channels, out_channels, 3, up=up, down=down, resample_filter=resample_filter
        )
        self.affine = nn.Linear(embedding_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            project = project_resampled_skip or in_channels != out_channels
            self.skip = Conv2d(
                in_channels,
                out_channels,
                1 if project else 0,
                up=up,
                down=down,
                resample_filter=resample_filter,
            )
        if num_heads > 0:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + modulation)
        h = functional.dropout(functional.silu(h), self.dropout, self.training)
        out = self.add_skip(self.conv1(h), x if self.skip is None else self.skip(x))
        return self.attend(out) if self.num_heads else out

    def add_skip(self, h: Tensor, skip: Tensor) -> Tensor:
        """`(h + skip) * skip_scale`, with one new tensor."""
        out = skip + h
        return out.mul_(self.skip_scale) if self.skip_scale != 1 else out

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over pixels, added to `x`; `qkv` interleaves the three in its output."""
        b, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x))
        qkv = qkv.reshape(b, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = qkv.permute(3, 0, 1, 4, 2).unbind()
        attended = attention(q, k, v).mT.reshape(b, channels, height, width)
        return self.add_skip(self.proj(attended), x)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise conditioning at frequencies from 1 down to 1/10000.

    With `endpoint` the last of the n/2 frequencies is exactly 1/10000.
    """

    def __init__(self, num_channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.num_channels, self.endpoint = num_channels, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.num_channels // 2
        k = torch.arange(half, dtype=torch.float32, device=c_noise.device)
        frequencies = (1 / 10000) ** (k / (half - (1 if self.endpoint else 0)))
        angle = torch.outer(c_noise, frequencies.to(c_noise.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the noise conditioning at random frequencies, which are a buffer."""

    freqs: Tensor

    def __init__(self, num_channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = torch.outer(c_noise, (2 * math.pi * self.freqs).to(c_noise.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def label_rows(
    label: Tensor | None, label_dim: int, like: Tensor, dropout: float, training: bool
) -> Tensor:
    """One-hot rows (b, label_dim); in training, each is zeroed with probability `dropout`."""
    rows = one_hot_label(label, label_dim, like)
    if training and dropout > 0:
        rows = rows * (torch.rand(len(rows), 1, device=rows.device) >= dropout)
    return rows


def init_weights(network: nn.Module) -> None:
    """Start every residual branch of `network` near zero, so that deep networks train from scratch.

    Linear layers get the uniform Xavier distribution, as the convolutions have it already.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, UNetBlock):
            last = [module.conv1, module.proj] if module.num_heads else [module.conv1]
            shrink(*last)


@torch.no_grad()
def shrink(*layers: nn.Module, factor: float = 1e-5) -> None:
    """Multiply the weights of `layers` by `factor`."""
    for layer in layers:
        assert isinstance(layer, Conv2d)
        assert layer.weight is not None
        layer.weight.mul_(factor)


def require_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Raise `PidistillError` unless `value` is one of `choices`."""
    if value not in choices:
        raise PidistillError(f"{argument} is {value!r}; expected one of {', '.join(choices)}")


def image_arguments(sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    """The arguments of a U-Net that follow from square images (channels, size, size).

    Raises `PidistillError` when the samples are not square images.
    """
    if len(sample_shape) != 3 or sample_shape[1] != sample_shape[2]:
        raise PidistillError(
            f"samples have the shape {tuple(sample_shape)}; a U-Net takes square images "
            "(channels, size, size)"
        )
    channels, size, _ = sample_shape
    return {
        "img_resolution": size,
        "in_channels": channels,
        "out_channels": channels,
        "label_dim": num_classes,
    }
