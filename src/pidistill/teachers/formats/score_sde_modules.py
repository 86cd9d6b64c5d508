"""Maps the module list of ScoreSDE's DDPM++ and NCSN++ to `SongUNet`."""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.teachers.formats import RefusedError

USUAL_ATTENTION = 16
LAYERS: dict[str, dict[str, str | None]] = {
    "combine": {"Conv_0": ""},
    "pyramid": {"Conv2d_0": ""},
    "attention": {"GroupNorm_0": "norm2.", **dict.fromkeys(("NIN_0", "NIN_1", "NIN_2", "NIN_3"))},
    "block": {
        "GroupNorm_0": "norm0.",
        "Conv_0": "conv0.",
        "Dense_0": "affine.",
        "GroupNorm_1": "norm1.",
        "Conv_1": "conv1.",
        "Conv_2": "skip.",  # not in every block
    },
}
"""The layers of each kind of module, and their name prefixes in `SongUNet`.

None: the layer is converted (see `attention_layers`).
"""


class Part(NamedTuple):
    """One entry of the checkpoint's module list."""

    number: int
    kind: str
    weights: dict[str, Tensor]

    @property
    def resamples(self) -> bool:
        """Whether it is a block that changes the resolution: it has a skip, but keeps its width."""
        if self.kind != "block" or "Conv_2.weight" not in self.weights:
            return False
        width_out, width_in = self.weights["Conv_0.weight"].shape[:2]
        return bool(width_out == width_in)


def split_parts(weights: dict[str, Tensor]) -> list[Part]:
    """Group weights by entry of the module list; entries without weights leave gaps."""
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, weight in weights.items():
        match = re.fullmatch(r"all_modules\.(\d{1,6})\.(.+)", key)
        if match is None:
            raise RefusedError(f"holds the unexpected weight {key!r}")
        grouped.setdefault(int(match[1]), {})[match[2]] = weight
    return [Part(i, kind_of(grouped[i], i), grouped[i]) for i in sorted(grouped)]


def kind_of(weights: dict[str, Tensor], number: int) -> str:
    """The kind of entry `number` of the module list, by the names of its weights."""
    if weights.keys() == {"weight", "bias"}:
        return {1: "norm", 2: "linear", 4: "conv"}.get(weights["weight"].ndim, "unknown")
    if weights.keys() == {"W"}:
        return "fourier"
    names = {key.partition(".")[0] for key in weights}
    if names == {"Conv_0"} and weights["Conv_0.weight"].shape[-1] != 1:
        raise RefusedError(
            f"is not supported: module {number} resamples with a convolution and without the "
            "filter [1, 3, 3, 1]"
        )
    for kind, layers in LAYERS.items():
        if names | {"Conv_2"} == layers.keys() | {"Conv_2"}:
            return kind
    raise RefusedError(
        f"is not supported: module {number} has the layers {', '.join(sorted(names))}; expected "
        "DDPM++ or NCSN++ with residual blocks of type 'biggan'"
    )


def network_config(parts: list[Part], options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `SongUNet`, from weights and `options`, and what was assumed."""
    kinds = [part.kind for part in parts]
    fourier = kinds[0] == "fourier"
    first = parts[fourier : fourier + 3]
    blocks = [part for part in parts if part.kind == "block"]
    plain = [part for part in blocks if not part.resamples]
    levels = (len(blocks) - len(plain)) // 2 + 1
    num_blocks, rest = divmod(len(plain) - 2 - levels, 2 * levels)
    if [part.kind for part in first] != ["linear", "linear", "conv"] or num_blocks < 1 or rest:
        raise RefusedError("does not have the modules of a DDPM++ or an NCSN++")
    width, channels = first[2].weights["weight"].shape[:2]
    embedding_width, noise_width = first[0].weights["weight"].shape
    encoder = plain[: levels * num_blocks]
    if "norm" in kinds and "pyramid" in kinds[kinds.index("norm") :]:
        raise RefusedError("has a progressive output of type 'residual', which is not supported")
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "model_channels": width,
        "channel_mult": [
            part.weights["Conv_0.weight"].shape[0] // width for part in encoder[::num_blocks]
        ],
        "channel_mult_emb": embedding_width // width,
        "channel_mult_noise": noise_width // width,
        "num_blocks": num_blocks,
        "dropout": 0.0,
        "embedding_type": "fourier" if fourier else "positional",
        "encoder_type": encoder_type(parts),
        "decoder_type": "skip" if kinds.count("norm") > 1 else "standard",
    }
    level_of = {part.number: i // num_blocks for i, part in enumerate(encoder)}
    attended = {
        level_of[before.number]
        for before, part in itertools.pairwise(parts)
        if part.kind == "attention" and before.number in level_of
    }
    seen, assumed = resolution(config, attended, options)
    return {**config, **seen}, assumed


def encoder_type(parts: list[Part]) -> str:
    """The type of the encoder of `SongUNet`.

    Where the input is concatenated, the next block is twice as wide as the layer that combines.
    """
    for part, following in itertools.pairwise(parts):
        if part.kind == "pyramid":
            return "residual"
        if part.kind == "combine":
            width = part.weights["Conv_0.weight"].shape[0]
            added = following.weights["GroupNorm_0.weight"].shape[0] == width
            return "skip" if added else "skip_cat"
    return "standard"


def resolution(
    config: dict[str, Any], attended: set[int], options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments that do not show in the weights, and which of them were assumed."""
    assumed = []
    progressive = (config["encoder_type"], config["decoder_type"]) != ("standard", "standard")
    filtered = config["encoder_type"] == "residual"  # its layers have other names without a filter
    fir, size = options.get("fir", progressive), options.get("image_size")
    if "fir" not in options and not filtered:
        assumed.append(f"resampling {'with' if fir else 'without'} the filter [1, 3, 3, 1]")
    if size is None:
        if len(attended) != 1:
            raise RefusedError(
                "does not state its image size; append ?image_size=N to its path, or put "
                '{"image_size": N} into a JSON file of the same name beside it'
            )
        size = USUAL_ATTENTION << min(attended)
        assumed.append(f"images of {size}x{size}")
    step = 1 << (len(config["channel_mult"]) - 1)
    flags = (True,) if filtered else (True, False)
    if (
        type(size) is not int
        or size < 1
        or size % step
        or type(fir) is not bool
        or fir not in flags
    ):
        raise RefusedError(
            f"cannot have image_size {size!r} and fir {fir!r}; expected a multiple of {step}, and "
            f"{' or '.join(str(flag).lower() for flag in flags)}"
        )
    return {
        "img_resolution": size,
        "attn_resolutions": [size >> level for level in sorted(attended)],
        "resample_filter": [1, 3, 3, 1] if fir else [1, 1],
    }, assumed


def renamed(parts: list[Part], config: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of `SongUNet(**config)` from `parts`, without its resampling filters."""
    wanted = list(targets(config))
    if len(parts) != len(wanted):
        raise RefusedError(f"has {len(parts)} modules with weights; expected {len(wanted)}")
    state: dict[str, Tensor] = {}
    for part, (kind, prefix) in zip(parts, wanted, strict=True):
        if part.kind != kind:
            raise RefusedError(
                f"has a {part.kind} as module {part.number}; expected the {kind} of {prefix} in a "
                "DDPM++ or an NCSN++"
            )
        state |= {f"{prefix}.{key}": weight for key, weight in converted(part).items()}
    return state


def targets(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of ScoreSDE's module list in order: kind, and name in `SongUNet`."""
    sizes = [config["img_resolution"] >> level for level in range(len(config["channel_mult"]))]
    names = [f"{size}x{size}" for size in sizes]
    attends = [size in config["attn_resolutions"] for size in sizes]
    num_blocks, last = config["num_blocks"], len(sizes) - 1
    if config["embedding_type"] == "fourier":
        yield "fourier", "map_noise"
    yield "linear", "map_layer0"
    yield "linear", "map_layer1"
    yield "conv", f"enc.{names[0]}_conv"
    for level, name in enumerate(names):
        for i in range(num_blocks):
            yield "block", f"enc.{name}_block{i}"
            if attends[level]:
                yield "attention", f"enc.{name}_block{i}"
        if level < last:
            yield "block", f"enc.{names[level + 1]}_down"
            if config["encoder_type"] == "skip":
                yield "combine", f"enc.{names[level + 1]}_aux_skip"
            if config["encoder_type"] == "skip_cat":
                yield "combine", f"enc.{names[level + 1]}_aux_cat"
            if config["encoder_type"] == "residual":
                yield "pyramid", f"enc.{names[level + 1]}_aux_residual"
    yield "block", f"dec.{names[last]}_in0"
    yield "attention", f"dec.{names[last]}_in0"
    yield "block", f"dec.{names[last]}_in1"
    for level in range(last, -1, -1):
        for i in range(num_blocks + 1):
            yield "block", f"dec.{names[level]}_block{i}"
        if attends[level]:
            yield "attention", f"dec.{names[level]}_block{num_blocks}"
        if config["decoder_type"] == "skip" or level == 0:
            yield "norm", f"dec.{names[level]}_aux_norm"
            yield "conv", f"dec.{names[level]}_aux_conv"
        if level > 0:
            yield "block", f"dec.{names[level - 1]}_up"


def converted(part: Part) -> dict[str, Tensor]:
    """The weights of one entry with the names and layout of `SongUNet`."""
    if part.kind == "fourier":
        return {"freqs": part.weights["W"]}
    if part.kind not in LAYERS:
        return part.weights
    state = {}
    for key, weight in part.weights.items():
        layer, _, name = key.partition(".")
        prefix = LAYERS[part.kind][layer]
        if prefix is not None:
            state[prefix + name] = weight
    return state | (attention_layers(part.weights) if part.kind == "attention" else {})


def attention_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert ScoreSDE's matrices for q, k, v and output (in, out) to 1x1 convolutions.

    Output channel `3 c + i` of `qkv` is channel `c` of the i-th of q, k and v.
    """
    qkv = torch.stack([weights[f"NIN_{i}.W"].T for i in range(3)], dim=1)
    bias = torch.stack([weights[f"NIN_{i}.b"] for i in range(3)], dim=1)
    return {
        "qkv.weight": qkv.flatten(0, 1)[:, :, None, None],
        "qkv.bias": bias.flatten(),
        "proj.weight": weights["NIN_3.W"].T[:, :, None, None].contiguous(),
        "proj.bias": weights["NIN_3.b"],
    }
