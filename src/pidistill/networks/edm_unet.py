"""Parts shared by the two U-Nets of Karras et al. 2022: blocks, levels, label embedding."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.layers import Conv2d, attention, group_norm, one_hot_label

NEAR_ZERO = 1e-5
"""Initial scale of the last layer of each residual branch and of the network."""


class UNetBlock(nn.Module):
    """Residual block: two convolutions with the embedding in between, then optional attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
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

        `resample_filter` holds the filter taps of `up` and `down`. The skip connection has a 1x1
        convolution if the width changes, or if it resamples and `project_resampled_skip` is set.
        With `adaptive_scale` the embedding scales and shifts; otherwise it is added. Every residual
        sum is multiplied by `skip_scale`.
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
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_scale=NEAR_ZERO)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            kernel = 1 if project_resampled_skip or in_channels != out_channels else 0
            self.skip = Conv2d(
                in_channels, out_channels, kernel, up=up, down=down, resample_filter=resample_filter
            )
        if num_heads > 0:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1, init_scale=NEAR_ZERO)

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
        """`(h + skip) * skip_scale`, allocating one tensor."""
        out = skip + h
        return out.mul_(self.skip_scale) if self.skip_scale != 1 else out

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over pixels, added to `x`; the output channels of `qkv` interleave."""
        b, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x))
        qkv = qkv.reshape(b, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = qkv.permute(3, 0, 1, 4, 2).unbind()
        attended = attention(q, k, v).mT.reshape(b, channels, height, width)
        return self.add_skip(self.proj(attended), x)


class EDMUNet(nn.Module):
    """A U-Net with the weight names of EDM checkpoints.

    `enc` and `dec` hold its layers by resolution, as in `enc.64x64_block0`. Subclasses may add
    layers to a level.
    """

    decoder_attends_once = False
    """Whether only the last block of a decoder level has attention."""

    halving_widens = 1
    """By how much the extra layers after a downsampling block multiply its width."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        for key in ("channel_mult", "model_channels", "num_blocks"):
            values = config[key] if isinstance(config[key], list) else [config[key]]
            if not values or min(values) <= 0:
                raise PidistillError(f"{key} is {config[key]}; expected positive numbers")

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The constructor arguments implied by images of shape (channels, size, size).

        Raises `PidistillError` if the samples are not square images.
        """
        if len(sample_shape) != 3 or sample_shape[1] != sample_shape[2]:
            raise PidistillError(
                f"samples have shape {tuple(sample_shape)}; a U-Net needs square images "
                "(channels, size, size)"
            )
        channels, size, _ = sample_shape
        return {
            "img_resolution": size,
            "in_channels": channels,
            "out_channels": channels,
            "label_dim": num_classes,
        }

    def after_halving(self, level: int, width: int) -> dict[str, nn.Module]:
        """Extra layers after the downsampling block of a level, by name."""
        return {}

    def after_level(self, level: int, width: int) -> dict[str, nn.Module]:
        """Extra layers after the blocks of a decoder level, by name."""
        return {}

    def label_rows(self, label: Tensor | None, like: Tensor) -> Tensor:
        """One-hot rows (b, label_dim), with random label dropout in training."""
        rows = one_hot_label(label, self.config["label_dim"], like)
        dropout = self.config["label_dropout"]
        if self.training and dropout > 0:
            rows = rows * (torch.rand(len(rows), 1, device=rows.device) >= dropout)
        return rows

    def build_levels(
        self,
        resolution: int,
        first: nn.Module,
        width: int,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        num_heads: Callable[[int], int],
    ) -> int:
        """Build `enc` and `dec`, and return the width of the last block.

        `resolution` is that of the top level, `width` that of `first`, the first convolution.
        `encoder` and `decoder` build a block with the arguments that all share, such as
        `UNetBlock`; `num_heads` maps the width of a block to its number of attention heads.
        """
        halvings = len(self.config["channel_mult"]) - 1
        if resolution % 2**halvings:
            factor = self.config["img_resolution"] // resolution * 2**halvings
            raise PidistillError(
                f"images have sides of {self.config['img_resolution']}; expected a multiple of "
                f"{factor}, since channel_mult has {halvings + 1} levels; resize them, or choose "
                "another channel_mult"
            )
        num_blocks = self.config["num_blocks"]
        resolutions = [resolution >> level for level in range(len(self.config["channel_mult"]))]
        names = [f"{size}x{size}" for size in resolutions]
        widths = [int(self.config["model_channels"] * m) for m in self.config["channel_mult"]]
        attends = [size in self.config["attn_resolutions"] for size in resolutions]
        skip_widths: list[int] = []
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for level, name in enumerate(names):
            if level == 0:
                self.enc[f"{name}_conv"] = first
            else:
                self.enc[f"{name}_down"] = encoder(width, width, down=True)
                for key, layer in self.after_halving(level, width).items():
                    self.enc[f"{name}_{key}"] = layer
                width *= self.halving_widens
            skip_widths.append(width)
            for i in range(num_blocks):
                wide = widths[level]
                heads = num_heads(wide) if attends[level] else 0
                self.enc[f"{name}_block{i}"] = encoder(width, wide, num_heads=heads)
                width = wide
                skip_widths.append(width)
        for level, name in reversed(list(enumerate(names))):
            if level == len(names) - 1:
                self.dec[f"{name}_in0"] = decoder(width, width, num_heads=num_heads(width))
                self.dec[f"{name}_in1"] = decoder(width, width)
            else:
                self.dec[f"{name}_up"] = decoder(width, width, up=True)
            for i in range(num_blocks + 1):
                attend = attends[level] and (i == num_blocks or not self.decoder_attends_once)
                wide, heads = widths[level], num_heads(widths[level]) if attend else 0
                width_in = width + skip_widths.pop()
                self.dec[f"{name}_block{i}"] = decoder(width_in, wide, num_heads=heads)
                width = wide
            for key, layer in self.after_level(level, width).items():
                self.dec[f"{name}_{key}"] = layer
        return width

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """The input of a decoder block: what comes from below, and from the encoder."""
        return torch.cat([x, skip], dim=1)

    def run_levels(self, u: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output of the last block, and the sum of the output convolutions, if any.

        Auxiliary layers pass the resampled input down the levels and the output up.
        """
        skips: list[Tensor] = []
        x = aux = u
        for key, layer in self.enc.items():
            if key.endswith("aux_down"):
                aux = layer(aux)
            elif key.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif key.endswith("aux_cat"):
                x = skips[-1] = torch.cat([layer(aux), x], dim=1)
            elif key.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x) if key.endswith("_conv") else layer(x, embedding)
                skips.append(x)
        h, out = x, None
        for key, layer in self.dec.items():
            if key.endswith("aux_up"):
                out = layer(out)
            elif key.endswith("aux_norm"):
                h = functional.silu(layer(x))
            elif key.endswith("aux_conv"):
                out = layer(h) if out is None else out + layer(h)
            else:
                x = self.join(x, skips.pop()) if "_block" in key else x
                x = layer(x, embedding)
        return x, out

    def init_linear_layers(self) -> None:
        """Initialise linear layers with Xavier's uniform distribution, like the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
