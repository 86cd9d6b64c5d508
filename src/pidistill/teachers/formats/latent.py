"""Latent and text-conditional pipelines: prompts as labels, and the latent decoder.

The ODE and the distillation work in latent space, scaled to unit variance as the network sees it.
A teacher in latent space has an attribute `decoder`, a module that turns latents into images.
"""

import codecs
import re
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.diffusers_unet import TextUNet, arguments_of
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, pipeline_folder
from pidistill.teachers.formats.network_checks import check_shape, sample_shape
from pidistill.teachers.formats.pipeline_folder import Pipeline

MAX_PROMPTS = 10_000
"""Each is kept encoded, as about 60,000 numbers, by the teacher and its students."""
BATCH = 64
"""Prompts that are encoded together."""


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


def load_decoder(pipeline: Pipeline) -> LatentDecoder | None:
    """The decoder of the pipeline; None if its samples are images."""
    for component in ("vae", "vqvae"):
        if pipeline_folder.has_component(pipeline, component):
            return LatentDecoder(pipeline_folder.load_network(pipeline, component))
    return None


def text_network(pipeline: Pipeline, prompts: list[str]) -> TextUNet:
    """The UNet2DConditionModel of a pipeline with `prompts` as its labels.

    Raises `RefusedError` if the pipeline conditions on more than text or its text encoder is not
    CLIP.
    """
    unet = pipeline_folder.load_network(pipeline, "unet")
    encoded = encode_prompts(pipeline, [*prompts, ""])
    with torch.device("meta"):
        network = TextUNet(arguments_of(unet), prompts, prompt_length=encoded.shape[1])
    if network.prompts.shape != encoded.shape:
        raise RefusedError(
            f"has a text encoder with embeddings of size {encoded.shape[-1]}; its UNet expects "
            f"{network.prompts.shape[2]}"
        )
    check_shape(network, sample_shape(unet.config))
    network.prompts = encoded
    network.unet.load_state_dict(unet.state_dict(), strict=True, assign=True)
    return network


def read_prompts(path: str) -> list[str]:
    """The non-empty lines of a text file in UTF-8, or in UTF-16 with a byte-order mark.

    Raises `PidistillError` if the file cannot be read, or holds no prompts or too many.
    """
    try:
        content = user_path(path).read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PidistillError(
            f"prompts file {path} cannot be read as text in UTF-8: {error}"
        ) from error
    if "\0" in text:
        raise PidistillError(f"prompts file {path} holds the character NUL; expected text")
    prompts = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not 0 < len(prompts) <= MAX_PROMPTS:
        found = f"holds {len(prompts)} prompts" if prompts else "is empty"
        raise PidistillError(
            f"prompts file {path} {found}; expected 1 to {MAX_PROMPTS} prompts, one a line"
        )
    return prompts


@torch.no_grad()
def encode_prompts(pipeline: Pipeline, prompts: list[str]) -> Tensor:
    """Prompt embeddings by the pipeline's text encoder, shape (n, length, width), float32."""
    tokenizer = pipeline_folder.load_component(pipeline, "tokenizer")
    encoder = pipeline_folder.load_network(pipeline, "text_encoder")
    tokens = tokens_of(tokenizer, encoder, prompts, tokenizer.model_max_length)
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    encoded = [
        encoder(ids, attention_mask=mask if use_mask else None)[0]
        for ids, mask in zip(
            tokens.input_ids.split(BATCH), tokens.attention_mask.split(BATCH), strict=True
        )
    ]
    return torch.cat(encoded)


def tokens_of(tokenizer: Any, encoder: Any, prompts: list[str], length: int) -> Any:
    """Prompts as `length` tokens each, or as many as the text encoder takes if these are fewer.

    Raises `RefusedError` if there are tokens that the text encoder does not know.
    """
    tokens = tokenizer(
        prompts,
        padding="max_length",
        # A tokenizer without a limit of its own states a huge one.
        max_length=min(length, getattr(encoder.config, "max_position_embeddings", length)),
        truncation=True,
        return_tensors="pt",
    )
    if tokens.input_ids.max() >= encoder.config.vocab_size:
        raise RefusedError(
            f"has a tokenizer of more tokens than the {encoder.config.vocab_size} of its text "
            "encoder"
        )
    return tokens
