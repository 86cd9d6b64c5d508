"""The UNet2DConditionModel of the diffusers library with a fixed list of prompts as its labels."""

from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.diffusers_unet import (
    attention_for,
    library_network,
    no_labels,
    plain_config,
    support_forward_mode,
)

UNSUPPORTED = (
    "addition_embed_type",
    "encoder_hid_dim_type",
    "class_embed_type",
    "num_class_embeds",
)
"""Arguments that ask for conditions beyond cross-attention to one text."""


class TextUNet(nn.Module):
    """Label `k` selects prompt `k`; no label is the empty prompt.

    The prompts are kept as what the text encoder made of them: no text encoder is needed to train
    or to sample.
    """

    prompts: Tensor

    def __init__(self, unet: dict[str, Any], prompts: list[str], *, prompt_length: int) -> None:
        """Build the network with fresh weights and zeros for the encoded prompts.

        Args:
            unet: Constructor arguments of UNet2DConditionModel, as in `unet/config.json`.
            prompts: The text of the prompts, for people to read.
            prompt_length: Number of tokens of an encoded prompt.

        Raises:
            PidistillError: The diffusers library is missing or refuses the arguments, or the
                network conditions on more than a text.
        """
        super().__init__()
        for name in UNSUPPORTED:
            if unet.get(name) is not None:
                raise PidistillError(
                    f"the UNet's {name} is {unet[name]!r}; expected null: only networks that "
                    "condition on one text by cross-attention, as Stable Diffusion 1 and 2, "
                    "can be used"
                )
        self.config: dict[str, Any] = {
            "unet": plain_config(unet),
            "prompts": list(prompts),
            "prompt_length": prompt_length,
        }
        self.unet = library_network("UNet2DConditionModel", unet)
        width = self.unet.config.cross_attention_dim
        encoded = torch.zeros(len(prompts) + 1, prompt_length, width)
        self.register_buffer("prompts", encoded)
        support_forward_mode(self.unet)

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """Nothing follows from the samples: this network only comes from a pipeline.

        Raises `PidistillError`.
        """
        raise PidistillError(
            "a text_unet cannot be built for samples alone, since its prompts have to be encoded; "
            "load it from a pipeline as the teacher 'diffusers:DIR?prompts=FILE.txt'"
        )

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, timestep, prompt); `c_noise` is the timestep (see `pidistill.networks`)."""
        rows = no_labels(u) if label is None else label
        texts = self.prompts[rows].to(u.dtype)  # row -1, the last, is the empty prompt
        with attention_for(c_noise):
            out: Tensor = self.unet(u, c_noise, texts, return_dict=False)[0]
        return out
