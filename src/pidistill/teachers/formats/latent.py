"""Latent and text-conditional pipelines: prompts as labels, and the latent decoder.

The ODE and the distillation work in latent space, scaled to unit variance as the network sees it.
A teacher in latent space has an attribute `decoder`, a module that turns latents into images.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.diffusers_unet import TextUNet, arguments_of
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, pipeline_folder


class LatentDecoder(nn.Module):
    """Decodes latents (b, c, h, w) of unit variance to images (b, 3, H, W) in about [-1, 1]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `latents`."""
        config = self.autoencoder.config
        unscaled = latents / config.scaling_factor + (config.get("shift_factor") or 0)
        images: Tensor = self.autoencoder.decode(unscaled, return_dict=False)[0]
        return images


def load_decoder(pipeline: Path) -> LatentDecoder | None:
    """The decoder of the pipeline in a folder; None if its samples are images."""
    for component in ("vae", "vqvae"):
        if pipeline_folder.has_component(pipeline, component):
            return LatentDecoder(pipeline_folder.load_network(pipeline, component))
    return None


def text_network(pipeline: Path, unet: Any, prompts_file: str) -> TextUNet:
    """A UNet2DConditionModel with the lines of a file as its labels.

    Raises `PidistillError` if there are no prompts, and `RefusedError` if the pipeline conditions
    on more than text or its text encoder is not CLIP.
    """
    prompts = read_prompts(prompts_file)
    encoded = encode_prompts(pipeline, [*prompts, ""])
    with torch.device("meta"):
        network = TextUNet(arguments_of(unet), prompts, prompt_length=encoded.shape[1])
    if network.prompts.shape != encoded.shape:
        raise RefusedError(
            f"has a text encoder with embeddings of size {encoded.shape[2]}; its UNet expects "
            f"{network.prompts.shape[2]}"
        )
    network.prompts = encoded
    network.unet.load_state_dict(unet.state_dict(), strict=True, assign=True)
    return network


def read_prompts(path: str) -> list[str]:
    """The non-empty lines of a text file.

    Raises `PidistillError` if the file cannot be read or has none.
    """
    try:
        text = user_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PidistillError(f"prompts file {path} cannot be read: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise PidistillError(f"prompts file {path} is empty; expected one prompt per line")
    return prompts


@torch.no_grad()
def encode_prompts(pipeline: Path, prompts: list[str]) -> Tensor:
    """Prompt embeddings by the pipeline's text encoder, shape (n, length, width), float32."""
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
