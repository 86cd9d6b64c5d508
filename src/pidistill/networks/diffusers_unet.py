"""The U-Nets of the diffusers library as raw networks `F(u, timestep, label)`.

The library is imported only when a network is built.
"""

import contextlib
import importlib
import inspect
import json
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from pidistill.errors import PidistillError, one_line


def require(library: str) -> ModuleType:
    """Import `library`, diffusers or one that it needs.

    Raises `PidistillError` if it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise PidistillError(
            f"a diffusers model needs the library {error.name}, which is not installed; "
            'run: pip install "pidistill[diffusers]"'
        ) from error


def library_network(name: str, arguments: dict[str, Any]) -> Any:
    """A diffusers network with fresh weights, differentiable in forward mode."""
    network_class = getattr(require("diffusers"), name)
    try:
        network = network_class(**arguments)
    except Exception as error:  # arguments of a wrong type can raise anything
        raise PidistillError(
            f"{name} does not accept these arguments: {one_line(error)}"
        ) from error
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_contiguous_tangent)
    return network


def _contiguous_tangent(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Make tangents contiguous, as torch's group norm needs; those from attention are not."""
    if not _has_tangent(inputs[0]):
        return None
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


def attention_for(c_noise: Tensor) -> contextlib.AbstractContextManager[None]:
    """Use attention that supports forward-mode derivatives if `c_noise` has a tangent."""
    return sdpa_kernel(SDPBackend.MATH) if _has_tangent(c_noise) else contextlib.nullcontext()


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def no_labels(u: Tensor) -> Tensor:
    """The label -1, "no label", for each sample in `u` (b, ...)."""
    return torch.full((len(u),), -1, dtype=torch.int64, device=u.device)


def only_from_pipeline(name: str) -> PidistillError:
    """The error for a network with encoded prompts that shall be built from scratch."""
    return PidistillError(
        f"a {name} cannot be built from scratch, since its prompts must be encoded; load it "
        "from a pipeline as the teacher 'diffusers:DIR?prompts=FILE.txt'"
    )


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments in the config of a diffusers model, as JSON values."""
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(arguments))
    return plain


def arguments_of(model: Any) -> dict[str, Any]:
    """The constructor arguments of a diffusers model, as JSON values.

    Keys of its config that are no arguments are left out; the library ignores them with a warning.
    """
    known = inspect.signature(type(model).__init__).parameters
    return plain_config({key: value for key, value in model.config.items() if key in known})


class DiffusersUNet(nn.Module):
    """A UNet2DModel whose timestep may be fractional and whose label may be absent."""

    def __init__(self, *, null_class: int | None = None, **unet: Any) -> None:
        """Build the network with fresh weights.

        Args:
            null_class: The row of the class embedding that means "no label", if the network was
                trained with one. None: without a label, nothing is added to the time embedding.
            unet: Constructor arguments of UNet2DModel, as in a pipeline's `unet/config.json`.

        Raises:
            PidistillError: The diffusers library is missing or refuses the arguments, or the
                network conditions on something other than class indices.
        """
        super().__init__()
        if unet.get("class_embed_type") is not None:
            raise PidistillError(
                f"class_embed_type is {unet['class_embed_type']!r}; only plain class indices "
                "(null, with num_class_embeds) can serve as labels"
            )
        self.config: dict[str, Any] = {**plain_config(unet), "null_class": null_class}
        self.unet = library_network("UNet2DModel", unet)
        self.is_conditional = self.unet.class_embedding is not None
        if self.is_conditional:
            rows, width = self.unet.class_embedding.weight.shape
            self.unet.class_embedding = LabelEmbedding(rows, width, null_class)
        if unet.get("time_embedding_type") == "learned":
            rows, width = self.unet.time_proj.weight.shape
            self.unet.time_proj = FractionalEmbedding(rows, width)

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The constructor arguments implied by the samples."""
        channels, *size = sample_shape
        return {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "num_class_embeds": num_classes or None,
        }

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, timestep, label); `c_noise` is the timestep (see `pidistill.networks`)."""
        conditions = {}
        if self.is_conditional:
            conditions["class_labels"] = no_labels(u) if label is None else label
        with attention_for(c_noise):
            out: Tensor = self.unet(u, c_noise, return_dict=False, **conditions)[0]
        return out


UNSUPPORTED = (
    "addition_embed_type",
    "encoder_hid_dim_type",
    "class_embed_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""Arguments for conditioning beyond cross-attention to one text."""


class TextUNet(nn.Module):
    """A UNet2DConditionModel: label `k` selects prompt `k`, "no label" the empty prompt.

    The prompts are stored encoded, so training and sampling need no text encoder.
    """

    prompts: Tensor

    def __init__(self, unet: dict[str, Any], prompts: list[str], *, prompt_length: int) -> None:
        """Build the network with fresh weights and zeros for the encoded prompts.

        Args:
            unet: Constructor arguments of UNet2DConditionModel, as in `unet/config.json`.
            prompts: The text of the prompts, for humans.
            prompt_length: Number of tokens per encoded prompt.

        Raises:
            PidistillError: The diffusers library is missing or refuses the arguments, or the
                network conditions on more than one text.
        """
        super().__init__()
        for name in UNSUPPORTED:
            if unet.get(name) is not None:
                raise PidistillError(
                    f"the UNet's {name} is {unet[name]!r}; expected null: only networks that "
                    "condition on one text by cross-attention, such as Stable Diffusion 1 and 2, "
                    "are supported"
                )
        self.config: dict[str, Any] = {
            "unet": plain_config(unet),
            "prompts": list(prompts),
            "prompt_length": prompt_length,
        }
        self.unet = library_network("UNet2DConditionModel", unet)
        width = self.unet.config.cross_attention_dim
        if not isinstance(width, int):
            raise PidistillError(f"the UNet's cross_attention_dim is {width}; expected one number")
        shape = (len(prompts) + 1, prompt_length, width)
        self.register_buffer("prompts", torch.zeros(shape))

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """Raise `PidistillError`: this network can only come from a pipeline."""
        raise only_from_pipeline("text_unet")

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, timestep, prompt); `c_noise` is the timestep (see `pidistill.networks`)."""
        rows = no_labels(u) if label is None else label
        texts = self.prompts[rows].to(u.dtype)  # row -1, the last, is the empty prompt
        with attention_for(c_noise):
            out: Tensor = self.unet(u, c_noise, texts, return_dict=False)[0]
        return out


class LabelEmbedding(nn.Embedding):
    """An embedding in which -1 selects the row `null_class`, or zeros if that is None."""

    def __init__(self, rows: int, width: int, null_class: int | None) -> None:
        super().__init__(rows, width)
        self.null_class = null_class

    def forward(self, label: Tensor) -> Tensor:
        """Rows (b, width) of the labels (b,)."""
        absent = label < 0
        if self.null_class is not None:
            return super().forward(label.masked_fill(absent, self.null_class))
        return super().forward(label.clamp(min=0)).masked_fill(absent[:, None], 0)


class FractionalEmbedding(nn.Embedding):
    """A learned embedding of timesteps, interpolated linearly between integers."""

    def forward(self, timestep: Tensor) -> Tensor:
        """Rows (b, width) of the timesteps (b,) in 0 .. rows - 1."""
        last = self.num_embeddings - 1
        below = timestep.detach().floor().clamp(0, max(last - 1, 0)).long()
        left = super().forward(below)
        right = super().forward((below + 1).clamp(max=last))
        return torch.lerp(left, right, (timestep - below).to(left.dtype)[:, None])
