"""EDM2's U-Net (Karras et al. 2024, figure 21), with the weight names of its checkpoints.

Every layer preserves the magnitude of what passes through it in expectation, so there are neither
biases nor group normalisation. Sums, concatenations and SiLU are scaled for that; equation numbers
are those of the paper.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.networks.edm_unet import EDMUNet
from pidistill.networks.layers import Conv2d, attention, plain_arguments
from pidistill.sharding import local

SILU_MAGNITUDE = 0.596
"""Root mean square of `silu(x)` for a standard normal x (equation 81)."""


def normalised(x: Tensor, dims: Sequence[int]) -> Tensor:
    """`x` scaled to a root mean square of 1 over `dims`; the norm is at least in float32."""
    precision = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=precision)
    size = math.prod(x.shape[dim] for dim in dims)
    return x / (1e-4 + norm / math.sqrt(size)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU at unit magnitude."""
    return functional.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """`(1 - balance) a + balance b` at unit magnitude (equation 88)."""
    return a.lerp(b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Channels of both, contributing in proportion `1 - balance` and `balance` (equation 103)."""
    scale = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - balance, balance)
    share_a, share_b = (1 - balance) / math.sqrt(a.shape[1]), balance / math.sqrt(b.shape[1])
    return torch.cat([scale * share_a * a, scale * share_b * b], dim=1)


class MPFourier(nn.Module):
    """Cosines of `c_noise` at fixed random frequencies and phases (equation 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, c_noise: Tensor) -> Tensor:
        precision = torch.promote_types(c_noise.dtype, torch.float32)
        angle = torch.outer(c_noise.to(precision), self.freqs.to(precision))
        return (math.sqrt(2) * (angle + self.phases).cos()).to(c_noise.dtype)


class MPConv(nn.Module):
    """A convolution, or with a kernel of size 0 a linear layer, with rows of unit magnitude.

    The rows are normalised whenever they are used (equation 47), so that their stored magnitude
    does not matter, except for how fast they can turn: see `constrain_`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        sides = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *sides))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """The layer times `gain`."""
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        w = normalised(w, range(1, w.ndim)) * (gain / math.sqrt(math.prod(w.shape[1:])))
        w = w.to(x.dtype)
        return x @ w.mT if w.ndim == 2 else functional.conv2d(x, w, padding=w.shape[-1] // 2)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Store the rows at unit magnitude (equation 66, "forced weight normalization").

        The trainer calls it after each optimizer step. FSDP divides a weight by rows.
        """
        weight = local(self.weight)
        weight.copy_(normalised(weight, range(1, weight.ndim)))


class MPBlock(nn.Module):
    """Residual block: two convolutions, scaled by the embedding in between, then attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        decodes: bool = False,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        resample_filter: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        """Build the block; the arguments are those of `EDM2UNet`.

        In the encoder, a change of width comes first, and the pixels are normalised; with
        `decodes`, it affects only the skip connection.
        """
        super().__init__()
        self.decodes, self.num_heads, self.dropout = decodes, num_heads, dropout
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self.resample: Conv2d | None = None
        if up or down:
            self.resample = Conv2d(
                in_channels, in_channels, 0, up=up, down=down, resample_filter=resample_filter
            )
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decodes else out_channels, out_channels, 3)
        self.emb_linear = MPConv(embedding_channels, out_channels, 0)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        changes = in_channels != out_channels
        self.conv_skip = MPConv(in_channels, out_channels, 1) if changes else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1) if num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if num_heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = x if self.resample is None else self.resample(x)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decodes:
            x = skip = normalised(skip, [1])
        h = self.conv_res0(mp_silu(x))
        h = mp_silu(h * (self.emb_linear(embedding, self.emb_gain) + 1)[:, :, None, None])
        h = self.conv_res1(functional.dropout(h, self.dropout, self.training))
        x = mp_sum(skip, h, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            attended = self.attn_proj(self.attend(self.attn_qkv(x)))
            x = mp_sum(x, attended, self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def attend(self, qkv: Tensor) -> Tensor:
        """Cosine attention over pixels; the channels of `qkv` interleave."""
        b, channels, height, width = qkv.shape
        qkv = qkv.reshape(b, self.num_heads, -1, 3, height * width)
        q, k, v = normalised(qkv, [2]).permute(3, 0, 1, 4, 2).unbind()
        return attention(q, k, v).mT.reshape(b, channels // 3, height, width)


class EDM2UNet(EDMUNet):
    """EDM2's U-Net; the published ones have `model_channels` from 128 (XS) to 448 (XXL).

    Arguments that are not listed are those of `SongUNet`.

    Args:
        channel_mult_noise: Width of the Fourier features, as a multiple of `model_channels`; if
            unset, that of the first level.
        channel_mult_emb: Width of the embedding, likewise; if unset, that of the widest level.
        label_balance: Share of the label in the embedding.
        concat_balance: Share of the encoder's output where the decoder joins it.
        channels_per_head: Channels of a head; narrower blocks have no attention.
        res_balance: Share of the residual branch of a block.
        attn_balance: Share of the attention of a block.
        clip_act: Activations are clipped here; if unset, they are not.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(plain_arguments(locals()))
        first = model_channels * channel_mult[0]
        fourier = model_channels * channel_mult_noise if channel_mult_noise else first
        width = model_channels * (channel_mult_emb or max(channel_mult))
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(fourier)
        self.emb_noise = MPConv(fourier, width, 0)
        self.emb_label = MPConv(label_dim, width, 0) if label_dim else None
        block = functools.partial(
            MPBlock,
            embedding_channels=width,
            resample_filter=resample_filter,
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        width = self.build_levels(
            img_resolution,
            MPConv(in_channels + 1, first, 3),
            first,
            block,
            functools.partial(block, decodes=True),
            num_heads=lambda width: width // channels_per_head,
        )
        self.out_conv = MPConv(width, out_channels, 3)

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            rows = self.label_rows(label, u) * math.sqrt(self.config["label_dim"])
            embedding = mp_sum(embedding, self.emb_label(rows), self.config["label_balance"])
        ones = torch.ones_like(u[:, :1])  # in place of biases
        x, _ = self.run_levels(torch.cat([u, ones], dim=1), mp_silu(embedding))
        out: Tensor = self.out_conv(x, self.out_gain)
        return out

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Concatenate in proportion (see `mp_cat`)."""
        return mp_cat(x, skip, self.config["concat_balance"])
