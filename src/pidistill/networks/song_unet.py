"""SongUNet: DDPM++ and NCSN++ (Song et al. 2021) as reimplemented by Karras et al. 2022."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.edm_unet import NEAR_ZERO, EDMUNet, UNetBlock
from pidistill.networks.layers import (
    Conv2d,
    FourierEmbedding,
    PositionalEmbedding,
    group_norm,
    plain_arguments,
)

CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual", "skip", "skip_cat"),
    "decoder_type": ("standard", "skip"),
}


class SongUNet(EDMUNet):
    """DDPM++ by default; NCSN++ with a Fourier embedding and a residual encoder.

    Args:
        img_resolution: Height and width of the images.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: Number of labels; 0 means unconditional.
        augment_dim: Width of EDM's augmentation labels. Their weights exist for loading, but are
            never used.
        model_channels: Base width.
        channel_mult: Width of each level, as a multiple of `model_channels`.
        channel_mult_emb: Width of the embedding, as a multiple of `model_channels`.
        num_blocks: Residual blocks per level.
        attn_resolutions: Resolutions with self-attention.
        dropout: Dropout probability in training.
        label_dropout: Probability of dropping a label in training.
        embedding_type: `positional` (DDPM++) or `fourier` (NCSN++).
        channel_mult_noise: Width of the noise embedding; 1 (DDPM++) or 2 (NCSN++).
        encoder_type: `standard` (DDPM++), `residual` (NCSN++), `skip`, or `skip_cat`, which
            concatenates what `skip` adds.
        decoder_type: `standard` or `skip`.
        resample_filter: `[1, 1]` (DDPM++) or `[1, 3, 3, 1]` (NCSN++).
        patch_size: Side of the pixel patches that are folded into channels (pixel unshuffle): the
            network works on a grid coarser by this factor and costs about `patch_size**2` times
            less. 1 is the paper's network. `attn_resolutions` refer to the grid.

    Raises:
        PidistillError: A choice is invalid, or `patch_size` does not divide the resolution.
    """

    decoder_attends_once = True

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
        super().__init__(plain_arguments(locals()))
        for argument, choices in CHOICES.items():
            if self.config[argument] not in choices:
                raise PidistillError(
                    f"{argument} is {self.config[argument]!r}; expected one of {', '.join(choices)}"
                )
        if patch_size < 1 or img_resolution % patch_size:
            raise PidistillError(
                f"patch_size is {patch_size}; expected a divisor of img_resolution {img_resolution}"
            )
        self.folded_in, self.folded_out = in_channels * patch_size**2, out_channels * patch_size**2
        self.patch_size, self.halving_widens = patch_size, 1 + (encoder_type == "skip_cat")
        width, noise_width = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.map_noise: nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_width, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_width)
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_width)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, noise_width, bias=False)
        self.map_layer0 = nn.Linear(noise_width, width)
        self.map_layer1 = nn.Linear(width, width)
        block = functools.partial(
            UNetBlock,
            embedding_channels=width,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_filter=resample_filter,
            project_resampled_skip=True,
            adaptive_scale=False,
        )
        resolution = img_resolution // patch_size
        first = Conv2d(self.folded_in, model_channels, 3)
        self.build_levels(resolution, first, model_channels, block, block, lambda width: 1)
        self.init_linear_layers()

    def after_halving(self, level: int, width: int) -> dict[str, nn.Module]:
        config = self.config
        taps = config["resample_filter"]
        if config["encoder_type"] in ("skip", "skip_cat"):
            channels = self.folded_in
            return {
                "aux_down": Conv2d(channels, channels, 0, down=True, resample_filter=taps),
                f"aux_{config['encoder_type'].removeprefix('skip_')}": Conv2d(channels, width, 1),
            }
        if config["encoder_type"] == "residual":
            above = config["model_channels"] * config["channel_mult"][level - 2]
            channels = self.folded_in if level == 1 else above
            layer = Conv2d(channels, width, 3, down=True, resample_filter=taps, filter_last=True)
            return {"aux_residual": layer}
        return {}

    def after_level(self, level: int, width: int) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        every_level = self.config["decoder_type"] == "skip"
        if every_level and level < len(self.config["channel_mult"]) - 1:
            channels, taps = self.folded_out, self.config["resample_filter"]
            layers["aux_up"] = Conv2d(channels, channels, 0, up=True, resample_filter=taps)
        if every_level or level == 0:
            layers["aux_norm"] = group_norm(width, eps=1e-6)
            layers["aux_conv"] = Conv2d(width, self.folded_out, 3, init_scale=NEAR_ZERO)
        return layers

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        cosines, sines = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)
        if self.config["label_dim"]:
            rows = self.label_rows(label, u) * math.sqrt(self.config["label_dim"])
            embedding = embedding + self.map_label(rows)
        embedding = functional.silu(self.map_layer0(embedding))
        embedding = functional.silu(self.map_layer1(embedding))
        _, out = self.run_levels(functional.pixel_unshuffle(u, self.patch_size), embedding)
        assert out is not None
        return functional.pixel_shuffle(out, self.patch_size)
