"""SongUNet: DDPM++ and NCSN++ (Song et al. 2021) as reimplemented by Karras et al. 2022."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.layers import (
    Conv2d,
    FourierEmbedding,
    PositionalEmbedding,
    UNetBlock,
    group_norm,
    image_arguments,
    init_weights,
    label_rows,
    require_choice,
    shrink,
)


class SongUNet(nn.Module):
    """DDPM++ by default; NCSN++ with a Fourier embedding and a residual encoder.

    Weights have the names that EDM checkpoints give them, such as `enc.32x32_conv.weight`.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        patch_size: int = 1,
    ) -> None:
        """Build the network.

        Args:
            img_resolution: Height and width of the images.
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            label_dim: Number of labels; 0 means unconditional.
            augment_dim: Width of the augmentation labels that EDM trains with. Their weights are
                kept for loading, but augmentation is never applied.
            model_channels: Width at the top level.
            channel_mult: Width of each level, as a multiple of `model_channels`.
            channel_mult_emb: Width of the embedding, as a multiple of `model_channels`.
            num_blocks: Residual blocks a level.
            attn_resolutions: Resolutions with self-attention.
            dropout: Dropout probability, in training.
            label_dropout: Probability of dropping a label, in training.
            embedding_type: `positional` (DDPM++) or `fourier` (NCSN++).
            channel_mult_noise: Width of the noise embedding; 1 (DDPM++) or 2 (NCSN++).
            encoder_type: `standard` (DDPM++), `residual` (NCSN++) or `skip`.
            decoder_type: `standard` or `skip`.
            resample_filter: `[1, 1]` (DDPM++) or `[1, 3, 3, 1]` (NCSN++).
            patch_size: Side of the squares of pixels that the network sees as one pixel with all
                their channels: its grid is that much coarser, and it is about its square times
                cheaper. 1 is the paper's network. All other resolutions are those of the grid.

        Raises:
            PidistillError: A choice is none of those above, or the patches do not fill the image.
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
            "embedding_type": embedding_type,
            "channel_mult_noise": channel_mult_noise,
            "encoder_type": encoder_type,
            "decoder_type": decoder_type,
            "resample_filter": list(resample_filter),
            "patch_size": patch_size,
        }
        require_choice("embedding_type", embedding_type, ("positional", "fourier"))
        require_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        require_choice("decoder_type", decoder_type, ("standard", "skip"))
        if patch_size < 1 or img_resolution % patch_size:
            raise PidistillError(
                f"patch_size is {patch_size}; expected a divisor of the images' size, "
                f"{img_resolution}"
            )
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.patch_size = patch_size
        img_resolution //= patch_size
        in_channels, out_channels = in_channels * patch_size**2, out_channels * patch_size**2

        noise_channels = model_channels * channel_mult_noise
        embedding_channels = model_channels * channel_mult_emb
        self.map_noise: nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_channels)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False)
        self.map_layer0 = nn.Linear(noise_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)

        def block(
            width_in: int, width_out: int, attend: bool = False, **resampling: Any
        ) -> UNetBlock:
            return UNetBlock(
                width_in,
                width_out,
                embedding_channels,
                num_heads=1 if attend else 0,
                dropout=dropout,
                skip_scale=math.sqrt(0.5),
                eps=1e-6,
                resample_filter=resample_filter,
                project_resampled_skip=True,
                adaptive_scale=False,
                **resampling,
            )

        self.enc = nn.ModuleDict()
        width, aux_width = model_channels, in_channels
        skip_widths: list[int] = []
        for level, multiplier in enumerate(channel_mult):
            resolution = img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Conv2d(
                        aux_width, aux_width, 0, down=True, resample_filter=resample_filter
                    )
                    self.enc[f"{name}_aux_skip"] = Conv2d(aux_width, width, 1)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = Conv2d(
                        aux_width,
                        width,
                        3,
                        down=True,
                        resample_filter=resample_filter,
                        filter_last=True,
                    )
                    aux_width = width
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
                    previous, width, attend=i == num_blocks and resolution in attn_resolutions
                )
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{name}_aux_up"] = Conv2d(
                        out_channels, out_channels, 0, up=True, resample_filter=resample_filter
                    )
                self.dec[f"{name}_aux_norm"] = group_norm(width, eps=1e-6)
                self.dec[f"{name}_aux_conv"] = Conv2d(width, out_channels, 3)

        init_weights(self)
        shrink(*(layer for key, layer in self.dec.items() if key.endswith("aux_conv")))

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The arguments that follow from the samples."""
        return image_arguments(sample_shape, num_classes)

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        embedding = self.embed(u, c_noise, label)
        folded = functional.pixel_unshuffle(u, self.patch_size)
        out = self.decode(self.encode(folded, embedding), embedding)
        return functional.pixel_shuffle(out, self.patch_size)

    def embed(self, u: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """The embedding of noise level and label (b, channels), ready for the blocks."""
        cosines, sines = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)
        if self.label_dim:
            rows = label_rows(label, self.label_dim, u, self.label_dropout, self.training)
            embedding = embedding + self.map_label(rows * math.sqrt(self.label_dim))
        embedding = functional.silu(self.map_layer0(embedding))
        return functional.silu(self.map_layer1(embedding))

    def encode(self, u: Tensor, embedding: Tensor) -> list[Tensor]:
        """The outputs of the encoder, one for each decoder block that takes a skip.

        The auxiliary path carries the input, resampled, down the levels beside the blocks.
        """
        skips: list[Tensor] = []
        x = aux = u
        for key, layer in self.enc.items():
            match key.partition("_")[2]:
                case "aux_down":
                    aux = layer(aux)
                case "aux_skip":
                    x = skips[-1] = x + layer(aux)
                case "aux_residual":
                    x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
                case "conv":
                    x = layer(x)
                    skips.append(x)
                case _:
                    x = layer(x, embedding)
                    skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """The output, which is the sum over the levels that have an output convolution."""
        x = h = skips[-1]
        out: Tensor | None = None
        for key, layer in self.dec.items():
            kind = key.partition("_")[2]
            match kind:
                case "aux_up":
                    out = layer(out)
                case "aux_norm":
                    h = functional.silu(layer(x))
                case "aux_conv":
                    out = layer(h) if out is None else out + layer(h)
                case "in0" | "in1" | "up":
                    x = layer(x, embedding)
                case _:
                    x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
        assert out is not None
        return out
