"""The latent space of an EDM2 checkpoint: its encoder's numbers, and decoding by a VAE folder.

EDM2's latents are those of Stable Diffusion's autoencoder for images in [0, 1], with a scale and a
bias per channel that the checkpoint holds. The autoencoder is not in the checkpoint.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.errors import one_line
from pidistill.files import read_json
from pidistill.networks.diffusers_unet import require
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, refusals_of
from pidistill.teachers.formats.edm_pickle import PickledArray, PickledModule
from pidistill.teachers.formats.safe_pickle import shown


class LatentScale(NamedTuple):
    """`latent = raw * scale + bias` per channel, where `raw` is what the autoencoder encodes."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]


class EDM2Decoder(nn.Module):
    """Decodes EDM2's latents (b, c, h, w) to images (b, 3, H, W) in about [-1, 1]."""

    scale: Tensor
    bias: Tensor

    def __init__(self, autoencoder: Any, numbers: LatentScale) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("scale", torch.tensor(numbers.scale)[:, None, None])
        self.register_buffer("bias", torch.tensor(numbers.bias)[:, None, None])

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `latents`."""
        raw = (latents - self.bias) / self.scale
        images: Tensor = self.autoencoder.decode(raw, return_dict=False)[0]
        return 2 * images - 1


def latent_scale(encoder: Any, channels: int) -> LatentScale | None:
    """The numbers of a checkpoint's `encoder`; None if its samples are images.

    Raises `RefusedError` if it is of an unknown class, or its numbers are not one per channel.
    """
    name = encoder.class_name if isinstance(encoder, PickledModule) else None
    if encoder is None or name == "StandardRGBEncoder":
        return None
    if name != "StabilityVAEEncoder":
        raise RefusedError(
            f"has an encoder of class {name}; expected StandardRGBEncoder or StabilityVAEEncoder"
        )
    arrays = [encoder.state.get(key) for key in LatentScale._fields]
    values = [array.values for array in arrays if isinstance(array, PickledArray)]
    if [len(numbers) for numbers in values] != [channels, channels] or 0 in values[0]:
        raise RefusedError(
            f"has an encoder whose scale and bias are not {channels} numbers each, one a channel"
        )
    return LatentScale(*values)


def vae_name(encoder: PickledModule) -> str:
    """What the checkpoint calls its autoencoder, such as stabilityai/sd-vae-ft-mse."""
    name = encoder.state.get("vae_name")
    return shown(name) if type(name) is str else "a VAE"


def load_decoder(folder: str, numbers: LatentScale) -> EDM2Decoder:
    """The decoder with the AutoencoderKL in a diffusers folder: its own, or that of a pipeline.

    Raises `PidistillError` if the folder holds none whose safetensors are complete, or one for
    another number of channels.
    """
    library = require("diffusers")
    path = user_path(folder)
    path = path / "vae" if (path / "vae").is_dir() else path
    with refusals_of(f"the VAE {folder}"):
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        if config.get("_class_name") != "AutoencoderKL":
            raise RefusedError(
                f"is {config.get('_class_name') or 'no folder with a config.json'}; expected the "
                "folder of an AutoencoderKL, such as a copy of stabilityai/sd-vae-ft-mse"
            )
        try:
            autoencoder, report = library.AutoencoderKL.from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # a damaged folder can raise anything
            raise RefusedError(f"cannot be loaded: {one_line(error)}") from error
        if report["missing_keys"]:
            raise RefusedError(f"lacks weights, the first being {report['missing_keys'][0]}")
        if autoencoder.config.latent_channels != len(numbers.scale):
            raise RefusedError(
                f"has latents of {autoencoder.config.latent_channels} channels; expected "
                f"{len(numbers.scale)}, as the checkpoint's"
            )
    return EDM2Decoder(autoencoder.float(), numbers)
