"""Teachers from ScoreSDE's PyTorch checkpoints (Song et al. 2021): DDPM++ and NCSN++.

A checkpoint of yang-song/score_sde_pytorch is a `torch.save` file with the entries `model` (a
state dict with keys `module.all_modules.N...`), `ema` (with the averaged weights as a bare list, in
the order of the trainable parameters), `optimizer` and `step`. It is read with
`weights_only=True`. The averaged weights are renamed for a `SongUNet`, which computes the same
function.

The architecture is inferred from the weights. Other settings are stated in the spec,
`score-sde:FILE?sde=vesde&image_size=32`, or in a JSON file beside the checkpoint, `FILE.json` or
`config.json`:

    {"sde": "vpsde", "image_size": 32, "fir": false, "beta_min": 0.1, "beta_max": 20.0}

Where the published configurations of a network differ, a setting must be stated; where they agree,
it is assumed with a warning. docs/teachers/score-sde.md explains the entries.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError, one_line
from pidistill.paths import user_path
from pidistill.precondition import (
    DiscreteVEPrecondition,
    DiscreteVPPrecondition,
    Precondition,
    SubVPPrecondition,
    VEPrecondition,
    VPPrecondition,
)
from pidistill.precondition.discrete import discrete_sigmas
from pidistill.teachers.formats import RefusedError, refusals_of
from pidistill.teachers.formats.score_sde_modules import network_config, renamed, split_parts
from pidistill.teachers.formats.weights import (
    json_beside,
    network_with_weights,
    read_torch,
    torch_head,
)
from pidistill.teachers.options import Options, parse_options

OPTIONS: Options = {
    "sde": str,
    "continuous": str,
    "image_size": int,
    "fir": str,
    "beta_min": float,
    "beta_max": float,
    "sigma_min": float,
    "sigma_max": float,
    "num_scales": int,
}
FLAGS = {"true": True, "false": False}
PUBLISHED = {
    "skip_rescale": True,
    "nonlinearity": "swish",
    "resblock_type": "biggan",
    "conditional": True,
    "fir_kernel": [1, 3, 3, 1],
}
"""Settings in which all published configurations agree; no others are supported."""


def load(locator: str) -> PreconditionedDenoiser:
    """Load the checkpoint in a file; `locator` is its path, and options after a question mark.

    Raises `PidistillError` if it is missing, damaged, of an unsupported network or SDE, or does
    not state what it must.
    """
    name, stated = parse_options("score-sde", locator, OPTIONS)
    path = user_path(name)
    if not path.is_file():
        raise PidistillError(f"{name!r} is not a file; expected score-sde:FILE")
    options = settings_of(path) | {key: FLAGS.get(value, value) for key, value in stated.items()}
    with refusals_of(path):
        weights, sigmas = averaged_weights(read_torch(path))
        try:
            parts = split_parts(weights)
            config, assumed = network_config(parts, options)
            state = renamed(parts, config)
            precondition = precondition_of(config["embedding_type"], options, sigmas)
        except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise RefusedError(
                f"has weights whose shapes do not fit DDPM++ or NCSN++: {one_line(error)}"
            ) from error
        network = network_with_weights("song_unet", config, state, str(path))
    if "sde" not in options:
        assumed.append("the VE SDE")
    if isinstance(precondition, VPPrecondition) and "continuous" not in options:
        assumed.append("training in continuous time")
    if assumed:
        warnings.warn(
            f"{path.name} does not state all settings, so {', '.join(assumed)} was assumed; state "
            f"it in the spec, as in FILE?continuous=true&image_size=32&fir=false, or in "
            f"{path.with_suffix('.json').name} beside it",
            stacklevel=2,
        )
    size = config["img_resolution"]
    return PreconditionedDenoiser(
        network,
        precondition,
        sample_shape=(config["in_channels"], size, size),
        source=f"{path.name} (ScoreSDE, {type(precondition).__name__})",
    )


def recognises(path: Path) -> bool:
    """Whether `path` is a `torch.save` file with averaged weights and a module list."""
    head = torch_head(path)
    return b"all_modules.0." in head and b"shadow_params" in head


def averaged_weights(content: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """The averaged weights of a checkpoint by name, and its buffer `sigmas` if it has one."""
    match content:
        case {"model": dict(model), "ema": {"shadow_params": list(shadow)}}:
            pass
        case _:
            raise RefusedError(
                "is not a ScoreSDE checkpoint; expected the entries 'model' and 'ema', the latter "
                "with 'shadow_params'"
            )
    if not all(isinstance(value, Tensor) for value in [*model.values(), *shadow]):
        raise RefusedError("holds values other than tensors in 'model' or 'shadow_params'")
    weights = {str(key).removeprefix("module."): value for key, value in model.items()}
    sigmas = weights.pop("sigmas", None)
    trainable = [key for key in weights if key != "all_modules.0.W"]  # W: Fourier features
    if len(trainable) != len(shadow):
        raise RefusedError(
            f"has {len(shadow)} averaged weights; expected {len(trainable)}, one per trainable "
            "weight of its model"
        )
    for key, average in zip(trainable, shadow, strict=True):
        if average.shape != weights[key].shape:
            raise RefusedError(
                f"has the averaged weight {key!r} with shape {tuple(average.shape)}; expected "
                f"{tuple(weights[key].shape)}"
            )
        weights[key] = average.detach().clone()
    return weights, sigmas


def settings_of(path: Path) -> dict[str, Any]:
    """The settings in the JSON file beside `path`, if there is one."""
    beside, settings = json_beside(path)
    known = (*OPTIONS, *PUBLISHED, "scale_by_sigma", "centered")
    for key in settings:
        if key not in known:
            raise PidistillError(
                f"{beside} has the unknown entry {key!r}; expected {', '.join(known)}"
            )
    return settings


def precondition_of(embedding: str, options: dict[str, Any], sigmas: Tensor | None) -> Precondition:
    """The preconditioning of the SDE that a network with this embedding was trained on.

    The VE networks were trained on images in [0, 1]; EDM coordinates are twice as wide.
    """
    if embedding == "positional" and "sde" not in options:
        raise RefusedError(
            "does not state its SDE, and networks with a positional embedding were trained on "
            "several; append ?sde=vpsde (or ?sde=vpsde&continuous=false), ?sde=subvpsde or "
            '?sde=vesde to its path, or put {"sde": ...} into a JSON file of the same name beside '
            "it; the folders of the published checkpoints are vp, subvp and ve"
        )
    sde = options.get("sde", "vesde")
    continuous = options.get("continuous", (embedding, sde) != ("positional", "vesde"))
    if (embedding, sde, continuous) not in list(TRAINING):  # values of JSON may not be hashable
        known = [f"{name!r} with {flag}" for kind, name, flag in TRAINING if kind == embedding]
        raise RefusedError(
            f"has a {embedding} embedding but the sde {sde!r} with continuous {continuous!r}; "
            f"expected {', '.join(known)}"
        )
    ve = sde == "vesde"
    for key, value in (PUBLISHED | {"scale_by_sigma": ve, "centered": not ve}).items():
        if options.get(key, value) != value:
            raise RefusedError(
                f"has {key} {options[key]!r}; for the sde {sde!r} only {value!r} is supported"
            )
    low, high = (0.01, 50.0) if sigmas is None else (sigmas.min().item(), sigmas.max().item())
    level = {"beta_min": 0.1, "beta_max": 20.0, "sigma_min": low, "sigma_max": high}
    level |= {"num_scales": 1000 if sigmas is None else len(sigmas)} | options
    for kind in ("beta", "sigma"):
        low, high = level[f"{kind}_min"], level[f"{kind}_max"]
        if not all(isinstance(value, int | float) for value in (low, high)) or not 0 < low < high:
            raise RefusedError(
                f"has {kind}_min {low!r} and {kind}_max {high!r}; expected numbers with "
                f"0 < {kind}_min < {kind}_max"
            )
    if type(level["num_scales"]) is not int or level["num_scales"] < 2:
        raise RefusedError(f"has num_scales {level['num_scales']!r}; expected an integer above 1")
    return TRAINING[embedding, sde, continuous](level)


def discrete_vp(level: dict[str, Any]) -> DiscreteVPPrecondition:
    """The VP SDE in `num_scales` steps, as in DDPM."""
    steps = level["num_scales"]
    betas = torch.linspace(level["beta_min"], level["beta_max"], steps, dtype=torch.float64) / steps
    table = (1 - betas).cumprod(0)
    low, high = discrete_sigmas(table)[[0, -1]].tolist()
    return DiscreteVPPrecondition(table.tolist(), sigma_min=low, sigma_max=high)


TRAINING: dict[tuple[str, str, bool], Callable[[dict[str, Any]], Precondition]] = {
    ("positional", "vpsde", True): lambda level: VPPrecondition(
        beta_d=level["beta_max"] - level["beta_min"], beta_min=level["beta_min"]
    ),
    ("positional", "vpsde", False): discrete_vp,
    ("positional", "subvpsde", True): lambda level: SubVPPrecondition(
        beta_d=level["beta_max"] - level["beta_min"], beta_min=level["beta_min"]
    ),
    ("positional", "vesde", False): lambda level: DiscreteVEPrecondition(
        2 * level["sigma_min"], 2 * level["sigma_max"], level["num_scales"]
    ),
    ("fourier", "vesde", True): lambda level: VEPrecondition(
        sigma_min=2 * level["sigma_min"], sigma_max=2 * level["sigma_max"]
    ),
}
"""The supported trainings by embedding, SDE and whether time is continuous."""
