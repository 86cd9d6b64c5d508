"""The transformers of the diffusers library as raw networks `F(u, timestep, label)`.

The library is imported only when a network is built.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.diffusers_unet import (
    attention_for,
    library_network,
    no_labels,
    only_from_pipeline,
    plain_config,
)


class ClassTransformer(nn.Module):
    """A DiTTransformer2DModel: the row after the last class means "no label".

    Its label dropout, which the library applies in training mode, is off: whoever trains a network
    chooses the labels, and the student of a teacher has to answer for the label that it is asked.
    """

    def __init__(self, **transformer: Any) -> None:
        """Build the network with fresh weights.

        Args:
            transformer: Constructor arguments of DiTTransformer2DModel, as in a pipeline's
                `transformer/config.json`.

        Raises:
            PidistillError: The diffusers library is missing or refuses the arguments.
        """
        super().__init__()
        self.config: dict[str, Any] = plain_config(transformer)
        self.transformer = library_network("DiTTransformer2DModel", transformer)
        for block in self.transformer.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The constructor arguments implied by the samples.

        Raises `PidistillError` if they are not square, or have no labels.
        """
        channels, *size = sample_shape
        if len(set(size)) != 1 or len(size) != 2 or num_classes == 0:
            raise PidistillError(
                f"a class_transformer needs square images with labels; these samples have the "
                f"shape {tuple(sample_shape)} and {num_classes} classes"
            )
        return {
            "sample_size": size[0],
            "in_channels": channels,
            "out_channels": channels,
            "num_embeds_ada_norm": num_classes,
        }

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, timestep, label); `c_noise` is the timestep (see `pidistill.networks`)."""
        rows = no_labels(u) if label is None else label
        rows = rows.masked_fill(rows < 0, self.transformer.config.num_embeds_ada_norm)
        with attention_for(c_noise):
            out: Tensor = self.transformer(u, c_noise, rows, return_dict=False)[0]
        return out


class PromptTransformer(nn.Module):
    """An SD3Transformer2DModel: label `k` selects prompt `k`, "no label" the empty prompt.

    The prompts are stored encoded, so training and sampling need no text encoders.
    """

    prompts: Tensor
    pooled: Tensor

    def __init__(
        self, transformer: dict[str, Any], prompts: list[str], *, prompt_length: int
    ) -> None:
        """Build the network with fresh weights and zeros for the encoded prompts.

        Args:
            transformer: Constructor arguments of SD3Transformer2DModel, as in
                `transformer/config.json`.
            prompts: The text of the prompts, for humans.
            prompt_length: Number of tokens per encoded prompt, of all text encoders together.

        Raises:
            PidistillError: The diffusers library is missing or refuses the arguments.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "transformer": plain_config(transformer),
            "prompts": list(prompts),
            "prompt_length": prompt_length,
        }
        self.transformer = library_network("SD3Transformer2DModel", transformer)
        config, rows = self.transformer.config, len(prompts) + 1
        self.register_buffer(
            "prompts", torch.zeros(rows, prompt_length, config.joint_attention_dim)
        )
        self.register_buffer("pooled", torch.zeros(rows, config.pooled_projection_dim))

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """Raise `PidistillError`: this network can only come from a pipeline."""
        raise only_from_pipeline("prompt_transformer")

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, timestep, prompt); `c_noise` is the timestep (see `pidistill.networks`)."""
        rows = no_labels(u) if label is None else label
        texts, pooled = self.prompts[rows].to(u.dtype), self.pooled[rows].to(u.dtype)
        with attention_for(c_noise):
            out: Tensor = self.transformer(u, texts, pooled, c_noise, return_dict=False)[0]
        return out
