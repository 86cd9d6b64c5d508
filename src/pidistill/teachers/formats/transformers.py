"""Transformers of diffusers pipelines: classes (DiT), and prompts in three encodings (SD3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import one_line
from pidistill.files import read_json
from pidistill.networks.diffusers_transformer import ClassTransformer, PromptTransformer
from pidistill.networks.diffusers_unet import arguments_of
from pidistill.teachers.formats import RefusedError, pipeline_folder
from pidistill.teachers.formats.latent import tokens_of
from pidistill.teachers.formats.network_checks import sample_shape, sides_of
from pidistill.teachers.formats.pipeline_folder import Pipeline

T5_LENGTH = 256
"""Tokens per prompt for T5: the pipeline's default `max_sequence_length`."""
ENCODED_AT_ONCE = 16
"""Prompts per call of a text encoder; T5 needs about 20 MB for each."""


def class_transformer(pipeline: Pipeline, options: dict[str, Any]) -> tuple[ClassTransformer, int]:
    """The DiTTransformer2DModel of a pipeline as a raw network, and its number of labels.

    Raises `RefusedError` if the options ask for prompts, or for another row without a label.
    """
    if "prompts" in options:
        raise RefusedError("is not conditioned on text; omit the option prompts")
    transformer = load_transformer(pipeline)
    if type(transformer).__name__ != "DiTTransformer2DModel":
        raise RefusedError(
            f"has a {type(transformer).__name__}; expected a class-conditional DiT or a "
            "transformer of Stable Diffusion 3"
        )
    classes = transformer.config.num_embeds_ada_norm
    if options.get("null_class", classes) != classes:
        raise RefusedError(
            f"has {classes} classes and one row for 'no label', {classes}, but null_class is "
            f"{options['null_class']}; omit it"
        )
    with torch.device("meta"):
        network = ClassTransformer(**arguments_of(transformer))
    take_weights(network, transformer)
    return network, classes


def prompt_transformer(pipeline: Pipeline, prompts: list[str]) -> PromptTransformer:
    """The SD3Transformer2DModel of a pipeline with `prompts` as its labels.

    Raises `RefusedError` if its text encoders are not those of Stable Diffusion 3.
    """
    clip, t5, pooled = encode_prompts(pipeline, [*prompts, ""])
    transformer = load_transformer(pipeline)
    if t5 is None:
        t5 = torch.zeros(len(clip), T5_LENGTH, transformer.config.joint_attention_dim)
    texts = torch.cat([nn.functional.pad(clip, (0, t5.shape[2] - clip.shape[2])), t5], dim=1)
    with torch.device("meta"):
        network = PromptTransformer(
            arguments_of(transformer), prompts, prompt_length=texts.shape[1]
        )
    take_weights(network, transformer)
    for name, rows in (("prompts", texts), ("pooled", pooled)):
        expected = getattr(network, name).shape
        if rows.shape != expected:
            raise RefusedError(
                f"has text encoders with embeddings of size {rows.shape[-1]}; its transformer "
                f"expects {expected[-1]}"
            )
        setattr(network, name, rows)
    return network


def load_transformer(pipeline: Pipeline) -> Any:
    """The pipeline's transformer. Raises `RefusedError` if its sample_size is not that of a square.

    The library computes with the size, and takes an integer only.
    """
    path = pipeline_folder.folder_of(pipeline.folder, "transformer") / "config.json"
    changed = {}
    if "sample_size" in (config := read_json(path)):
        changed["sample_size"], width = sides_of(config["sample_size"])
        if width != changed["sample_size"]:
            raise RefusedError(
                f"has a transformer whose sample_size is {config['sample_size']}; expected one "
                "number, as its samples are square"
            )
    return pipeline_folder.load_network(pipeline, "transformer", **changed)


def take_weights(network: ClassTransformer | PromptTransformer, transformer: Any) -> None:
    """Move the tensors of `transformer` to a `network` on the meta device.

    Raises `RefusedError` if the network does not return samples of the shape that it takes.
    """
    shape = sample_shape(transformer.config)
    x = torch.empty((1, *shape), device="meta")
    try:
        out = network(x, x[:, 0, 0, 0])
    except Exception as error:  # an odd config can raise anything
        raise RefusedError(
            f"has a transformer that does not take samples of shape {shape}: {one_line(error)}"
        ) from error
    if out.shape[2:] != x.shape[2:]:
        raise RefusedError(
            f"has a transformer whose sample_size is {shape[1]}; expected a multiple of its "
            f"patch_size, {transformer.config.patch_size}"
        )
    network.transformer.load_state_dict(transformer.state_dict(), strict=True, assign=True)
    # The sines and cosines of DiT are not in its state dict.
    network.transformer.pos_embed.pos_embed = transformer.pos_embed.pos_embed


def encode_prompts(pipeline: Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Prompts as Stable Diffusion 3 sees them (Esser et al. 2024), in float32.

    Returns the tokens of two CLIP encoders side by side and those of T5, both (n, length, width),
    and the pooled projections of both CLIP encoders side by side, (n, size). The tokens of T5 are
    None in a pipeline without it.
    """
    length = pipeline_folder.load_component(pipeline, "tokenizer").model_max_length
    # One encoder after the other, so that only one is in memory.
    clip = [encoded(pipeline, which, prompts, length, clip_states) for which in ("", "_2")]
    tokens, pooled = (torch.cat(parts, dim=-1) for parts in zip(*clip, strict=True))
    if not pipeline_folder.has_component(pipeline, "text_encoder_3"):
        return tokens, None, pooled
    (t5,) = encoded(pipeline, "_3", prompts, T5_LENGTH, t5_states)
    return tokens, t5, pooled


@torch.no_grad()
def encoded(
    pipeline: Pipeline,
    which: str,
    prompts: list[str],
    length: int,
    states: Callable[[Any, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """The `states` of the text encoder with the suffix `which` for prompts of `length` tokens."""
    tokenizer = pipeline_folder.load_component(pipeline, f"tokenizer{which}")
    encoder = pipeline_folder.load_network(pipeline, f"text_encoder{which}")
    tokens = tokens_of(tokenizer, encoder, prompts, length)
    batches = [states(encoder, ids) for ids in tokens.input_ids.split(ENCODED_AT_ONCE)]
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def clip_states(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens before CLIP's last layer, (b, length, width), and its pooled projection (b, p)."""
    out = encoder(ids, output_hidden_states=True)
    if not hasattr(out, "text_embeds"):
        raise RefusedError(
            "has a CLIP text encoder without a projection; Stable Diffusion 3 needs "
            "CLIPTextModelWithProjection"
        )
    return out.hidden_states[-2], out.text_embeds


def t5_states(encoder: Any, ids: Tensor) -> tuple[Tensor]:
    """The tokens after the last layer of T5, (b, length, width)."""
    return (encoder(ids)[0],)
