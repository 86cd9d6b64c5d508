"""Weights of OpenAI's `UNetModel` under the names of our `DhariwalUNet`.

The networks of guided-diffusion (Dhariwal & Nichol 2021) and of consistency-models (Song et al.
2023) compute what `DhariwalUNet` computes, if they were built with `resblock_updown`,
`use_scale_shift_norm` and 64 channels a head. What differs is the names of the weights, their
number of axes in the attention, the order of queries, keys and values, and that the embedding of
labels is a table of rows.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.networks.dhariwal_unet import CHANNELS_PER_HEAD, DhariwalUNet
from pidistill.networks.edm_unet import UNetBlock
from pidistill.networks.layers import resampling_kernel
from pidistill.teachers.formats.weights import meta_network, require_shapes

NETWORK = "dhariwal_unet"
GROUPS = 32
"""Groups of every group normalisation of a `UNetModel`."""

QKV_ORDERS = {"three-major": (1, 2, 0), "legacy": (0, 2, 1)}
"""How the output axis of `qkv` becomes (head, channel, three).

`three-major` is (three, head, channel): consistency-models, and guided-diffusion with
`use_new_attention_order`. `legacy` is (head, three, channel): guided-diffusion without it.
"""

TOP_LEVEL = {
    "map_layer0": "time_embed.0",
    "map_layer1": "time_embed.2",
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
ATTENTION_WEIGHTS = (".qkv.weight", ".proj_out.weight")


class Place(NamedTuple):
    """Where a weight of ours is in the file."""

    key: str
    """Its name there."""
    shape: tuple[int, ...]
    """Its shape there."""
    convert: Callable[[Tensor], Tensor]
    """What makes it ours."""


def is_openai_unet(weights: dict[str, Tensor]) -> bool:
    """Whether these are the weights of a `UNetModel`."""
    return any(key.startswith("input_blocks.") for key in weights)


def renamed_weights(
    weights: dict[str, Tensor], config: dict[str, Any], qkv_order: Any, source: str
) -> dict[str, Tensor]:
    """The state dict of the `DhariwalUNet` of `config` from the `weights` of a `UNetModel`.

    Args:
        weights: The whole state dict of the `UNetModel`.
        config: Constructor arguments of our network.
        qkv_order: A key of `QKV_ORDERS`.
        source: What to call the file in errors.

    Raises:
        PidistillError: The network cannot be built or computes something else than a `UNetModel`,
            or a weight is missing, unexpected or misshapen.
    """
    if not isinstance(qkv_order, str) or qkv_order not in QKV_ORDERS:
        raise PidistillError(
            f"{source}: qkv_order is {qkv_order!r}; expected one of {', '.join(QKV_ORDERS)}"
        )
    network = meta_network(NETWORK, config, source)
    assert isinstance(network, DhariwalUNet)
    require_same_function(network, source)
    ours = network.state_dict()
    constant = {key: resampling_kernel((1, 1)) for key in ours if key.endswith(".resample_filter")}
    prefixes = dict(prefixes_of(network))
    places = {
        key: place_of(key, tuple(weight.shape), prefixes, network, qkv_order)
        for key, weight in ours.items()
        if key not in constant
    }
    weights = {  # attention is Conv1d in guided-diffusion, Conv2d in consistency-models
        key: w[..., None] if w.ndim == 3 and key.endswith(ATTENTION_WEIGHTS) else w
        for key, w in weights.items()
    }
    require_shapes(
        {place.key: place.shape for place in places.values()},
        {key: tuple(weight.shape) for key, weight in weights.items()},
        source,
    )
    return constant | {key: place.convert(weights[place.key]) for key, place in places.items()}


def require_same_function(network: DhariwalUNet, source: str) -> None:
    """Raise `PidistillError` where a `UNetModel` of this architecture would compute another D."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups != GROUPS:
            raise PidistillError(
                f"{source}: {name} has {module.num_groups} groups of its {module.num_channels} "
                f"channels, a UNetModel {GROUPS}; expected widths of at least {4 * GROUPS}"
            )
        if isinstance(module, UNetBlock) and module.num_heads:
            width = module.proj.weight.shape[0]  # type: ignore[union-attr]
            if width != module.num_heads * CHANNELS_PER_HEAD:
                raise PidistillError(
                    f"{source}: {name} attends with {width} channels; expected a multiple of "
                    f"{CHANNELS_PER_HEAD}, the channels of a head"
                )


def prefixes_of(network: DhariwalUNet) -> Iterator[tuple[str, str]]:
    """Pairs of the name of a block of ours, and of the list that holds it in a `UNetModel`.

    Each list holds a residual block, attention if there is any, and in the decoder the block that
    doubles the resolution, which is the first of our next level.
    """
    for i, name in enumerate(network.enc):
        yield f"enc.{name}", f"input_blocks.{i}.0"
    number, length = 0, 0
    for name, block in network.dec.items():
        assert isinstance(block, UNetBlock)
        if name.endswith("_in0"):
            yield f"dec.{name}", "middle_block.0"
        elif name.endswith("_in1"):
            yield f"dec.{name}", "middle_block.2"
        elif name.endswith("_up"):
            yield f"dec.{name}", f"output_blocks.{number - 1}.{length}"
        else:
            yield f"dec.{name}", f"output_blocks.{number}.0"
            number, length = number + 1, 2 if block.num_heads else 1


def place_of(
    key: str,
    shape: tuple[int, ...],
    prefixes: dict[str, str],
    network: DhariwalUNet,
    qkv_order: str,
) -> Place:
    """Where the weight `key` of ours, which has this `shape`, is in the file."""
    layer, kind = key.rsplit(".", 1)
    if layer == "map_label":
        return Place("label_emb.weight", shape[::-1], lambda w: w.T.contiguous())
    if layer in TOP_LEVEL:
        return Place(f"{TOP_LEVEL[layer]}.{kind}", shape, as_it_is)
    if layer in prefixes:  # the first convolution
        return Place(f"{prefixes[layer]}.{kind}", shape, as_it_is)
    block, part = layer.rsplit(".", 1)
    prefix = prefixes[block]
    if part in IN_BLOCK:
        return Place(f"{prefix}.{IN_BLOCK[part]}.{kind}", shape, as_it_is)
    parent, index = prefix.rsplit(".", 1)
    there = f"{parent}.{int(index) + 1}.{IN_ATTENTION[part]}.{kind}"
    if part != "qkv":
        return Place(there, shape, as_it_is)
    heads = network.get_submodule(block).num_heads
    assert isinstance(heads, int)
    return Place(there, shape, lambda w: heads_first(w, heads, qkv_order))


def as_it_is(weight: Tensor) -> Tensor:
    """`weight`."""
    return weight


def heads_first(weight: Tensor, heads: int, order: str) -> Tensor:
    """`weight` (3 c, ...) in this `order`, with its first axis as (head, channel, three)."""
    sizes = (3, heads, -1) if order == "three-major" else (heads, 3, -1)
    split = weight.unflatten(0, sizes)
    rest = range(3, split.ndim)
    return torch.flatten(split.permute(*QKV_ORDERS[order], *rest), 0, 2)
