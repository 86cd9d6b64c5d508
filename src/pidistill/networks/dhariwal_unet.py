"""DhariwalUNet: ADM (Dhariwal & Nichol 2021) as reimplemented by Karras et al. 2022."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.networks.layers import (
    Conv2d,
    PositionalEmbedding,
    UNetBlock,
    group_norm,
    image_arguments,
    init_weights,
    label_rows,
    shrink,
)

CHANNELS_PER_HEAD = 64


class DhariwalUNet(nn.Module):
    """ADM: blocks that the embedding scales and shifts, attention with 64 channels a head.

    Weights have the names that EDM checkpoints give them, such as `enc.64x64_conv.weight`.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            img_resolution: Height and width of the images.
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            label_dim: Number of labels; 0 means unconditional.
            augment_dim: Width of the augmentation labels that EDM trains with. Their weights are
                kept for loading, but augmentation is never applied.
            model_channels: Base width.
            channel_mult: Width of each level, as a multiple of `model_channels`.
            channel_mult_emb: Width of the embedding, as a multiple of `model_channels`.
            num_blocks: Residual blocks a level.
            attn_resolutions: Resolutions with self-attention.
            dropout: Dropout probability, in training.
            label_dropout: Probability of dropping a label, in training.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "img_resolution": img_resolution,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "label_dim": label_dim,
            "augment_dim": augment_dim,
            "model_channels": model_channels,
            "channel_mult": list(channel_mult),
            "channel_mult_emb": channel_mult_emb,
            "num_blocks": num_blocks,
            "attn_resolutions": list(attn_resolutions),
            "dropout": dropout,
            "label_dropout": label_dropout,
        }
        self.label_dim, self.label_dropout = label_dim, label_dropout
        embedding_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
        self.map_layer0 = nn.Linear(model_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, embedding_channels, bias=False)

        def block(
            width_in: int, width_out: int, attend: bool = False, **resampling: Any
        ) -> UNetBlock:
            return UNetBlock(
                width_in,
                width_out,
                embedding_channels,
                num_heads=width_out // CHANNELS_PER_HEAD if attend else 0,
                dropout=dropout,
                **resampling,
            )

        self.enc = nn.ModuleDict()
        width = model_channels * channel_mult[0]
        skip_widths: list[int] = []
        for level, multiplier in enumerate(channel_mult):
            resolution = img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, down=True)
            skip_widths.append(width)
            for i in range(num_blocks):
                previous, width = width, model_channels * multiplier
                self.enc[f"{name}_block{i}"] = block(
                    previous, width, attend=resolution in attn_resolutions
                )
                skip_widths.append(width)

        self.dec = nn.ModuleDict()
        for level, multiplier in reversed(list(enumerate(channel_mult))):
            resolution = img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attend=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for i in range(num_blocks + 1):
                previous, width = width + skip_widths.pop(), model_channels * multiplier
                self.dec[f"{name}_block{i}"] = block(
                    previous, width, attend=resolution in attn_resolutions
                )
        self.out_norm = group_norm(width, eps=1e-5)
        self.out_conv = Conv2d(width, out_channels, 3)

        init_weights(self)
        shrink(self.out_conv)

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The arguments that follow from the samples."""
        return image_arguments(sample_shape, num_classes)

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        embedding = self.embed(u, c_noise, label)
        skips: list[Tensor] = []
        x = u
        for key, layer in self.enc.items():
            x = layer(x) if key.endswith("_conv") else layer(x, embedding)
            skips.append(x)
        for key, layer in self.dec.items():
            if "_block" in key:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out

    def embed(self, u: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """The embedding of noise level and label (b, channels), ready for the blocks."""
        embedding = functional.silu(self.map_layer0(self.map_noise(c_noise)))
        embedding = self.map_layer1(embedding)
        if self.label_dim:
            rows = label_rows(label, self.label_dim, u, self.label_dropout, self.training)
            embedding = embedding + self.map_label(rows)
        return functional.silu(embedding)
