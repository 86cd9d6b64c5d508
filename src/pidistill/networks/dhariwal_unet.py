"""DhariwalUNet: ADM (Dhariwal & Nichol 2021) as reimplemented by Karras et al. 2022."""

import functools
from collections.abc import Sequence

import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.networks.edm_unet import NEAR_ZERO, EDMUNet, UNetBlock
from pidistill.networks.layers import Conv2d, PositionalEmbedding, group_norm, plain_arguments

CHANNELS_PER_HEAD = 64


class DhariwalUNet(EDMUNet):
    """ADM: adaptive group normalisation, attention with 64 channels per head.

    Arguments that are not listed are those of `SongUNet`.

    Args:
        channel_mult: Width of each level, as a multiple of `model_channels`; may have halves.
        num_heads: Number of heads of every attention; 0 means 64 channels per head.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        num_heads: int = 0,
    ) -> None:
        super().__init__(plain_arguments(locals()))
        width = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        if label_dim:
            self.map_label = nn.Linear(label_dim, width, bias=False)
        block = functools.partial(UNetBlock, embedding_channels=width, dropout=dropout)
        first = int(model_channels * channel_mult[0])
        width = self.build_levels(
            img_resolution,
            Conv2d(in_channels, first, 3),
            first,
            block,
            block,
            num_heads=lambda width: num_heads or width // CHANNELS_PER_HEAD,
        )
        self.out_norm = group_norm(width, eps=1e-5)
        self.out_conv = Conv2d(width, out_channels, 3, init_scale=NEAR_ZERO)
        self.init_linear_layers()

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        embedding = self.map_layer1(functional.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.config["label_dim"]:
            embedding = embedding + self.map_label(self.label_rows(label, u))
        embedding = functional.silu(embedding)
        x, _ = self.run_levels(u, embedding)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out
