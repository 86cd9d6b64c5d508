"""Converts weights of OpenAI's `UNetModel` to our `DhariwalUNet`.

The networks of guided-diffusion (Dhariwal & Nichol 2021) and of consistency-models (Song et al.
2023) compute the same function as `DhariwalUNet` if they were built with `resblock_updown` and
`use_scale_shift_norm`. They differ in the names of the weights, the number of axes of the attention
weights, the order of queries, keys and values, and the label embedding, which is transposed.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.networks.dhariwal_unet import CHANNELS_PER_HEAD, DhariwalUNet
from pidistill.networks.edm_unet import UNetBlock
from pidistill.precondition.discrete import DiscreteVPPrecondition, discrete_sigmas
from pidistill.teachers.formats import RefusedError
from pidistill.teachers.formats.discrete_schedule import table_precondition
from pidistill.teachers.formats.weights import empty_network

NETWORK = "dhariwal_unet"
GROUPS = 32
"""Number of groups of every group normalisation in a `UNetModel`."""

QKV_ORDERS = {"three-major": (1, 2, 0), "legacy": (0, 2, 1)}
"""Permutation that brings the output axis of `qkv` to (head, channel, three).

`three-major` is (three, head, channel): consistency-models, and guided-diffusion with
`use_new_attention_order`. `legacy` is (head, three, channel): guided-diffusion without it.
"""

TOP_LEVEL = {
    "map_layer0": "time_embed.0",
    "map_layer1": "time_embed.2",
    "map_label": "label_emb",
    "out_norm": "out.0",
    "out_conv": "out.2",
}
IN_BLOCK = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "skip": "skip_connection",
}
IN_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


def is_openai_unet(weights: dict[str, Tensor]) -> bool:
    """Whether `weights` are those of a `UNetModel`."""
    return any(key.startswith("input_blocks.") for key in weights)


def discrete_vp_settings(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of `DiscreteVPPrecondition` for these flags, the arguments of `process`.

    Raises `RefusedError` if a flag is unknown, missing or invalid.
    """
    try:
        return dataclasses.asdict(process(**flags))
    except TypeError as error:
        raise RefusedError(f"has a wrong precondition in its JSON file: {error}") from error


def process(
    *,
    noise_schedule: str,
    diffusion_steps: int = 1000,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> DiscreteVPPrecondition:
    """The preconditioning of a network that guided-diffusion trained.

    The arguments are its flags. A sampler's `timestep_respacing` changes nothing: the network is
    told the timestep of the full process.

    Raises `RefusedError` if the schedule is unknown or the noise levels do not lie within it.
    """
    if type(diffusion_steps) is not int or diffusion_steps < 2:
        raise RefusedError(f"has diffusion_steps {diffusion_steps!r}; expected an integer above 1")
    if noise_schedule == "linear":
        scale = 1000 / diffusion_steps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, diffusion_steps, dtype=torch.float64)
    elif noise_schedule == "cosine":
        t = torch.arange(diffusion_steps + 1, dtype=torch.float64) / diffusion_steps
        bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise RefusedError(f"has the noise_schedule {noise_schedule!r}; expected linear or cosine")
    return table_precondition(
        discrete_sigmas((1 - betas).cumprod(0)),
        "sample" if predict_xstart else "epsilon",
        sigma_min,
        sigma_max,
        timestep_scale=1000 / diffusion_steps if rescale_timesteps else 1.0,
    )


def refuse_other_blocks(weights: dict[str, Tensor]) -> None:
    """Raise `RefusedError` if a `UNetModel` was built with blocks that `DhariwalUNet` lacks."""
    key = "input_blocks.1.0.emb_layers.1.weight"
    width = len(weights.get("input_blocks.1.0.out_layers.0.weight", ()))
    if any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.(weight|bias)", key) for key in weights):
        flag = "resblock_updown"
    elif key in weights and len(weights[key]) == width:
        flag = "use_scale_shift_norm"
    else:
        return
    raise RefusedError(f"holds a UNetModel built without {flag}, which is not supported")


def renamed_weights(
    weights: dict[str, Tensor], config: dict[str, Any], qkv_order: Any
) -> dict[str, Tensor]:
    """Convert the state dict of a `UNetModel` to one of `DhariwalUNet(**config)`."""
    if not isinstance(qkv_order, str) or qkv_order not in QKV_ORDERS:
        raise RefusedError(f"has the qkv_order {qkv_order!r}; expected {' or '.join(QKV_ORDERS)}")
    refuse_other_blocks(weights)
    network = empty_network(NETWORK, config)
    assert isinstance(network, DhariwalUNet)
    require_same_function(network)
    names = layer_names(network)
    renamed: dict[str, Tensor] = {}
    remaining = dict(weights)
    for key in network.state_dict():
        layer, _, kind = key.rpartition(".")
        if kind == "resample_filter":
            continue
        name = f"{names[layer]}.{kind}"
        if name not in remaining:
            raise RefusedError(f"lacks the weight {name!r}")
        weight = remaining.pop(name)
        block, _, part = layer.rpartition(".")
        if layer == "map_label":
            weight = weight.T
        if part in ("qkv", "proj") and weight.ndim == 3:
            weight = weight[..., None]  # Conv1d in guided-diffusion, Conv2d in consistency-models
        if part == "qkv":
            weight = heads_first(weight, network.get_submodule(block).num_heads, qkv_order)
        renamed[key] = weight
    if remaining:
        raise RefusedError(f"holds the unexpected weight {next(iter(remaining))!r}")
    return renamed


def require_same_function(network: DhariwalUNet) -> None:
    """Raise `RefusedError` if a `UNetModel` of this architecture computes another function."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups != GROUPS:
            raise RefusedError(
                f"cannot be of this network: {name} normalises its {module.num_channels} channels "
                f"in {module.num_groups} groups, a UNetModel in {GROUPS}; expected widths of at "
                f"least {4 * GROUPS}"
            )
        if isinstance(module, UNetBlock) and module.num_heads:
            width = module.proj.weight.shape[0]  # type: ignore[union-attr]
            stated = network.config["num_heads"]
            divisor = stated or CHANNELS_PER_HEAD
            if width % divisor:
                raise RefusedError(
                    f"cannot be of this network: {name} has attention over {width} channels; "
                    f"expected a multiple of {divisor}, the "
                    f"{'number of heads' if stated else 'channels per head'}"
                )


def layer_names(network: DhariwalUNet) -> dict[str, str]:
    """The `UNetModel` name of each of our layers, and of some that we do not have."""
    names = dict(TOP_LEVEL)
    for block, place, index in places(network):
        names[block] = f"{place}.{index}"  # for the first convolution
        names |= {f"{block}.{ours}": f"{place}.{index}.{key}" for ours, key in IN_BLOCK.items()}
        names |= {
            f"{block}.{ours}": f"{place}.{index + 1}.{key}" for ours, key in IN_ATTENTION.items()
        }
    return names


def places(network: DhariwalUNet) -> Iterator[tuple[str, str, int]]:
    """Each of our blocks, the list that holds it in a `UNetModel`, and its index there.

    A list holds a residual block, its attention if any, and in the decoder the upsampling block,
    which is the first block of our next level.
    """
    for i, name in enumerate(network.enc):
        yield f"enc.{name}", f"input_blocks.{i}", 0
    number, length = -1, 0
    for name, block in network.dec.items():
        match name.rpartition("_")[2]:
            case "in0":
                yield f"dec.{name}", "middle_block", 0
            case "in1":
                yield f"dec.{name}", "middle_block", 2
            case "up":
                yield f"dec.{name}", f"output_blocks.{number}", length
            case _:
                number, length = number + 1, 2 if block.num_heads else 1
                yield f"dec.{name}", f"output_blocks.{number}", 0


def heads_first(weight: Tensor, heads: Any, order: str) -> Tensor:
    """Reorder the first axis of `weight` (3 c, ...) from `order` to (head, channel, three).

    If its size does not allow that, `weight` is returned unchanged, for the loader to refuse.
    """
    if weight.shape[0] % (3 * heads):
        return weight
    split = weight.unflatten(0, (3, heads, -1) if order == "three-major" else (heads, 3, -1))
    return torch.flatten(split.permute(*QKV_ORDERS[order], *range(3, split.ndim)), 0, 2)
