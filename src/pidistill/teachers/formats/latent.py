"""Latent and text-conditional pipelines: prompts as labels, and the decoder of the latents.

The ODE and the distillation live in the space of the latents, scaled to unit variance as the
network sees them. A teacher of latents has an attribute `decoder`, a module that turns them into
images.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.diffusers_unet import TextUNet, plain_config
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, pipeline_folder


class LatentDecoder(nn.Module):
    """Latents (b, c, h, w) of unit variance to images (b, 3, H, W), about [-1, 1]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """The images of `latents`."""
        scaled = latents / self.autoencoder.config.scaling_factor
        images: Tensor = self.autoencoder.decode(scaled, return_dict=False)[0]
        return images


def load_decoder(pipeline: Path) -> LatentDecoder | None:
    """The decoder of the pipeline in a folder; None where its samples are images already."""
    for component in ("vae", "vqvae"):
        if pipeline_folder.has_component(pipeline, component):
            return LatentDecoder(pipeline_folder.load_network(pipeline, component))
    return None


def text_network(pipeline: Path, unet: Any, prompts_file: str) -> TextUNet:
    """A UNet2DConditionModel with the lines of a file as its labels.

    Raises `PidistillError` when there are no prompts, and `RefusedError` when the pipeline
    conditions on more than text or its text encoder is not a CLIP one.
    """
    prompts = read_prompts(prompts_file)
    encoded = encode_prompts(pipeline, [*prompts, ""])
    with torch.device("meta"):
        network = TextUNet(plain_config(unet.config), prompts, prompt_length=encoded.shape[1])
    if network.prompts.shape != encoded.shape:
        raise RefusedError(
            f"has a text encoder that gives vectors of size {encoded.shape[2]}; expected "
            f"{network.prompts.shape[2]}, as for its UNet"
        )
    network.prompts = encoded
    network.unet.load_state_dict(unet.state_dict(), strict=True, assign=True)
    return network


def read_prompts(path: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises `PidistillError` when the file cannot be read or holds none.
    """
    try:
        text = user_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PidistillError(f"prompts file {path} cannot be read: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise PidistillError(f"prompts file {path} is empty; expected one prompt a line")
    return prompts


@torch.no_grad()
def encode_prompts(pipeline: Path, prompts: list[str]) -> Tensor:
    """What the pipeline's text encoder makes of the prompts, shape (n, length, width), float32."""
    tokenizer = pipeline_folder.load_component(pipeline, "tokenizer")
    encoder = pipeline_folder.load_network(pipeline, "text_encoder")
    tokens = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    encoded: Tensor = encoder(
        tokens.input_ids, attention_mask=tokens.attention_mask if use_mask else None
    )[0]
    return encoded
