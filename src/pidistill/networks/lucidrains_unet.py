"""The U-Net of denoising-diffusion-pytorch since version 1.9, with its names of weights."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.layers import attention, plain_arguments


class RMSNorm(nn.Module):
    """Unit root mean square over the channels of each pixel, times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * self.g * math.sqrt(x.shape[1])


class ConvBlock(nn.Module):
    """Convolution, normalisation, an optional scale and shift, activation, dropout."""

    def __init__(self, width_in: int, width_out: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, width_out) if groups else RMSNorm(width_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        h = self.norm(self.proj(x))
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
        out: Tensor = self.dropout(functional.silu(h))
        return out


class ResidualBlock(nn.Module):
    """Two `ConvBlock`s, the first modulated by the embedding, and a skip connection."""

    def __init__(
        self, width_in: int, width_out: int, embedding: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width_out))
        self.block1 = ConvBlock(width_in, width_out, groups, dropout)
        self.block2 = ConvBlock(width_out, width_out, groups)
        same = width_in == width_out
        self.res_conv = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.block2(self.block1(x, self.mlp(embedding))) + self.res_conv(x)
        return out


class FullAttention(nn.Module):
    """Self-attention over pixels and `memory` learned keys and values, added to the input."""

    def __init__(self, width: int, heads: int, head_width: int, memory: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, memory, head_width))
        self.to_qkv = nn.Conv2d(width, 3 * heads * head_width, 1, bias=False)
        self.to_out: nn.Module = nn.Conv2d(heads * head_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mem_kv.shape[1]
        rows = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, heads, -1))
        attended = self.attend(*rows.unbind(1))
        out: Tensor = x + self.to_out(attended.reshape(len(x), -1, *x.shape[2:]))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values (b, heads, channels, pixels) that `q` attends to, all of that shape."""
        k, v = (
            torch.cat([memory.expand(len(q), -1, -1, -1), rows.mT], dim=2)
            for memory, rows in zip(self.mem_kv, (k, v), strict=True)
        )
        return attention(q.mT, k, v).mT


class LinearAttention(FullAttention):
    """Attention of linear cost: softmax over the channels of q, and over the pixels of k."""

    def __init__(self, width: int, heads: int, head_width: int, memory: int) -> None:
        super().__init__(width, heads, head_width, memory)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, head_width, memory))
        self.to_out = nn.Sequential(self.to_out, RMSNorm(width))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (
            torch.cat([memory.expand(len(q), -1, -1, -1), rows], dim=3)
            for memory, rows in zip(self.mem_kv, (k, v), strict=True)
        )
        q = q.softmax(dim=2) / math.sqrt(q.shape[2])
        return v @ k.softmax(dim=3).mT @ q


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of `c_noise` at frequencies from 1 down to exactly 1/`theta`."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.num_frequencies, self.theta = width // 2, theta

    def forward(self, c_noise: Tensor) -> Tensor:
        k = torch.arange(self.num_frequencies, dtype=torch.float32, device=c_noise.device)
        frequencies = (k * -(math.log(self.theta) / (self.num_frequencies - 1))).exp()
        angle = torch.outer(c_noise, frequencies.to(c_noise.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class LucidrainsUNet(nn.Module):
    """The default network of denoising-diffusion-pytorch, unconditional.

    Args:
        channels: Channels of the images.
        dim: Base width.
        init_dim: Width of the first convolution; if unset, `dim`.
        dim_mults: Width of each level, as a multiple of `dim`.
        full_attn: Whether each level has full instead of linear attention; if unset, the last has.
        attn_heads: Heads of the attention of each level; an integer means the same for all.
        attn_dim_head: Channels of a head, likewise.
        memory: Number of learned keys and values of each attention.
        self_condition: Whether the input also takes an estimate of the clean image. It is always
            zero here, as in the first step of the original's sampler.
        learned_variance: Whether the output has a predicted variance, in as many channels again.
        groups: Groups of the normalisation in residual blocks (8 by default before version 2);
            0 means the root mean square of each pixel.
        theta: One over the lowest frequency of the embedding.
        dropout: Dropout probability in training.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 64,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        full_attn: Sequence[bool] | None = None,
        attn_heads: int | Sequence[int] = 4,
        attn_dim_head: int | Sequence[int] = 32,
        memory: int = 4,
        self_condition: bool = False,
        learned_variance: bool = False,
        groups: int = 0,
        theta: float = 10000,
        dropout: float = 0.0,
    ) -> None:
        config = plain_arguments(locals())
        super().__init__()
        self.config = config
        levels = len(dim_mults)
        widths = [init_dim or dim, *(dim * m for m in dim_mults)]
        full = [*[False] * (levels - 1), True] if full_attn is None else full_attn
        heads, head_widths = (
            [value] * levels if isinstance(value, int) else value
            for value in (attn_heads, attn_dim_head)
        )

        def block(width_in: int, width_out: int) -> ResidualBlock:
            return ResidualBlock(width_in, width_out, 4 * dim, groups, dropout)

        def attend(level: int, width: int) -> FullAttention:
            kind = FullAttention if full[level] else LinearAttention
            return kind(width, heads[level], head_widths[level], memory)

        self.init_conv = nn.Conv2d(channels * (1 + self_condition), widths[0], 7, padding=3)
        embed = SinusoidalEmbedding(dim, theta)
        linear = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, 4 * dim)
        self.time_mlp = nn.Sequential(embed, linear[0], nn.GELU(), linear[1])
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (above, below) in enumerate(itertools.pairwise(widths)):
            last = level == levels - 1
            halve = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * above, below, 1))
            down = nn.Conv2d(above, below, 3, padding=1) if last else halve
            blocks = [block(above, above), block(above, above)]
            self.downs.append(nn.ModuleList([*blocks, attend(level, above), down]))
        self.mid_block1, self.mid_block2 = block(below, below), block(below, below)
        self.mid_attn = FullAttention(below, heads[-1], head_widths[-1], memory)
        for level in range(levels - 1, -1, -1):
            above, below = widths[level : level + 2]
            conv = nn.Conv2d(below, above, 3, padding=1)
            up = conv if level == 0 else nn.Sequential(nn.Upsample(scale_factor=2), conv)
            blocks = [block(below + above, below), block(below + above, below)]
            self.ups.append(nn.ModuleList([*blocks, attend(level, below), up]))
        self.final_res_block = block(2 * widths[0], widths[0])
        self.final_conv = nn.Conv2d(widths[0], channels * (1 + learned_variance), 1)

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The constructor arguments implied by images of shape (channels, height, width).

        Raises `PidistillError` if there are labels, or the samples are not images.
        """
        if len(sample_shape) != 3 or num_classes:
            raise PidistillError(
                f"samples have shape {tuple(sample_shape)} and {num_classes} labels; the network "
                "'lucidrains_unet' needs images (channels, height, width) without labels"
            )
        return {"channels": sample_shape[0]}

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise) (see `pidistill.networks`)."""
        if self.config["self_condition"]:
            u = torch.cat([torch.zeros_like(u), u], dim=1)
        embedding = self.time_mlp(c_noise)
        x = first = self.init_conv(u)
        skips: list[Tensor] = []
        stage: Any
        for stage in self.downs:
            block1, block2, attend, down = stage
            skips.append(block1(x, embedding))
            skips.append(attend(block2(skips[-1], embedding)))
            x = down(skips[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, embedding)), embedding)
        for stage in self.ups:
            block1, block2, attend, up = stage
            x = block1(torch.cat([x, skips.pop()], dim=1), embedding)
            x = up(attend(block2(torch.cat([x, skips.pop()], dim=1), embedding)))
        x = self.final_res_block(torch.cat([x, first], dim=1), embedding)
        out: Tensor = self.final_conv(x)
        return out
