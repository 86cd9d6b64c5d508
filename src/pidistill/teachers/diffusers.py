r"""Teachers from pipelines of the diffusers library.

`diffusers:DIR_or_REPO[?OPTION=VALUE&...]` names a pipeline folder or a repository on the Hugging
Face hub. Supported are U-Nets and DiT transformers for images or latents (DDPM, DDIM and similar,
consistency models, flow matching), and Stable Diffusion 1 to 3 with a list of prompts as labels
(see `formats/latent.py` and `formats/transformers.py`). The network is unchanged; its conventions
become a preconditioning.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.guidance import GuidedDenoiser
from pidistill.networks.diffusers_unet import DiffusersUNet, TextUNet, arguments_of
from pidistill.teachers.formats import (
    RefusedError,
    latent,
    pipeline_folder,
    refusals_of,
    transformers,
)
from pidistill.teachers.formats.network_checks import check_shape, check_times, sample_shape
from pidistill.teachers.formats.pipeline_folder import Pipeline
from pidistill.teachers.formats.schedulers import precondition_of
from pidistill.teachers.options import Options, parse_options

PIXEL_SIGMA_DATA = 0.5
"""Standard deviation of images in [-1, 1] by EDM's convention; pipelines do not state it."""
LATENT_SIGMA_DATA = 1.0
"""Pipelines scale their latents to unit variance."""

TEXT_NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel")
TEXT_LOADERS = {"unet": latent.text_network, "transformer": transformers.prompt_transformer}
"""Functions of a pipeline and its prompts, by the component that is the network."""

OPTIONS: Options = {
    "sigma_min": float,
    "sigma_max": float,
    "prompts": str,
    "guidance": float,
    "null_class": int,
    "revision": str,
    "variant": str,
}


def recognises(path: Path) -> bool:
    """Whether `path` is the folder of a diffusers pipeline."""
    return pipeline_folder.is_pipeline_folder(path)


def load(locator: str) -> Denoiser:
    """Load the teacher from a pipeline.

    `locator` is a folder or a repository name, with options after a question mark (see
    docs/teachers/diffusers.md). Raises `PidistillError` if the diffusers library is missing or the
    pipeline cannot be read.
    """
    name, options = parse_locator(locator)
    pipeline = pipeline_folder.open_pipeline(name, options.get("revision"), options.get("variant"))
    with refusals_of(name):
        pipeline_folder.refuse_other_kinds(pipeline)
        decoder = latent.load_decoder(pipeline)
        precondition = precondition_of(
            pipeline_folder.load_component(pipeline, "scheduler"),
            sigma_data=PIXEL_SIGMA_DATA if decoder is None else LATENT_SIGMA_DATA,
            sigma_min=options.get("sigma_min"),
            sigma_max=options.get("sigma_max"),
        )
        network, num_classes, shape = raw_network(pipeline, name, options)
        if isinstance(network, DiffusersUNet | TextUNet):
            check_times(network, precondition)
    denoiser: Denoiser = PreconditionedDenoiser(
        network,
        precondition,
        sample_shape=shape,
        num_classes=num_classes,
        source=f"diffusers:{locator}",
    )
    if decoder is not None:
        denoiser.decoder = decoder
    denoiser.class_names = class_names(pipeline, network, num_classes)
    return GuidedDenoiser(denoiser, options["guidance"]) if "guidance" in options else denoiser


def raw_network(
    pipeline: Pipeline, name: str, options: dict[str, Any]
) -> tuple[nn.Module, int, tuple[int, int, int]]:
    """The pipeline's network as a raw one, its number of labels, and the shape of its samples."""
    part = "transformer" if pipeline_folder.has_component(pipeline, "transformer") else "unet"
    shape = sample_shape(pipeline_folder.config_of(pipeline, part))
    network: nn.Module
    if pipeline_folder.class_of(pipeline_folder.index_of(pipeline.folder), part) in TEXT_NETWORKS:
        prompts = prompts_of(name, options)
        network, num_classes = TEXT_LOADERS[part](pipeline, prompts), len(prompts)
    elif part == "transformer":
        network, num_classes = transformers.class_transformer(pipeline, options)
    else:
        network, num_classes = class_network(pipeline_folder.load_network(pipeline, part), options)
    return network, num_classes, shape


def class_names(pipeline: Pipeline, network: Any, num_classes: int) -> tuple[str, ...]:
    """The prompts, or the names that a DiT pipeline has for its classes; empty without names."""
    names = pipeline_folder.index_of(pipeline.folder).get("id2label")
    if "prompts" not in network.config and isinstance(names, dict):
        return tuple(str(names.get(str(k), k)) for k in range(num_classes))
    return tuple(network.config.get("prompts", ()))


def prompts_of(name: str, options: dict[str, Any]) -> list[str]:
    """The prompts that the options name, which a pipeline conditioned on text needs."""
    if "prompts" not in options:
        raise RefusedError(
            "is conditioned on text; name a file with one prompt per line, as in "
            f"'diffusers:{name}?prompts=FILE.txt'"
        )
    if "null_class" in options:
        raise RefusedError(
            "is conditioned on text, and the empty prompt is 'no label'; omit the option null_class"
        )
    return latent.read_prompts(options["prompts"])


def load_decoder(locator: str) -> latent.LatentDecoder | None:
    """Only the latent decoder of the teacher `locator`; None if it has none.

    Raises `PidistillError` if the pipeline or its autoencoder cannot be read.
    """
    name, options = parse_locator(locator)
    pipeline = pipeline_folder.open_pipeline(name, options.get("revision"), options.get("variant"))
    with refusals_of(name):
        return latent.load_decoder(pipeline)


def parse_locator(locator: str) -> tuple[str, dict[str, Any]]:
    """The name of the pipeline, and its options; see `parse_options`.

    Raises `PidistillError` if the name is empty, or an option is unknown or has a bad value.
    """
    name, options = parse_options("diffusers", locator, OPTIONS)
    if not name:
        raise PidistillError(
            f"teacher 'diffusers:{locator}' names no pipeline; expected diffusers:DIR_or_REPO"
        )
    return name, options


def class_network(unet: Any, options: dict[str, Any]) -> tuple[DiffusersUNet, int]:
    """A UNet2DModel as a raw network, and its number of labels."""
    rows = unet.config.num_class_embeds or 0
    null_class = options.get("null_class")
    if "prompts" in options:
        raise RefusedError("is not conditioned on text; omit the option prompts")
    if unet.config.num_class_embeds == 0:
        raise RefusedError("has a UNet whose num_class_embeds is 0; expected null, or a number")
    if null_class is not None and not 0 <= null_class < rows:
        raise RefusedError(f"has {rows} class embedding rows, but null_class is {null_class}")
    if "guidance" in options and null_class is None:
        raise RefusedError(
            f"cannot be guided (guidance is {options['guidance']}) unless one row of its class "
            "embedding means 'no label'; specify that row as null_class"
        )
    with torch.device("meta"):
        network = DiffusersUNet(null_class=null_class, **arguments_of(unet))
    check_shape(network, sample_shape(unet.config))
    network.unet.load_state_dict(unet.state_dict(), strict=True, assign=True)
    null_is_last = null_class is not None and null_class == rows - 1
    return network, rows - 1 if null_is_last else rows
